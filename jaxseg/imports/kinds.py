"""What passes between the readers of files, the rules that know a network's names, and the folder of an import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxseg.settings.kinds import nearest
from jaxseg.types import Params, UserError


class Tensors(dict[str, np.ndarray]):
    """Tensors by their names in a file; asking for a name that is not there is the user's mistake and says so."""

    def __missing__(self, name: str) -> np.ndarray:
        raise UserError(
            f"the file has no tensor {name!r}{nearest(name, self)} It is not of the network that these rules are for, "
            f"or has other names; --list shows them"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A network of jaxseg's with the weights of another, as rules return it."""

    params: Params
    """Nested dict of float32 arrays at jaxseg's paths, such as `encoder/level_0/conv_0/kernel`, in jaxseg's layout.
    Parameters of the network may be missing; an arm that starts from the import draws these anew."""
    model: Mapping[str, Any]
    """The fields of `config.model` that build the network; those left out have their defaults."""
    channels: int
    """Image channels that the network reads."""
    classes: int
    """Classes that it predicts, background included, or regions (see `outputs`)."""
    used: Mapping[str, str]
    """For each path of `params`, the name of the tensor that it was made from."""
    ignored: tuple[tuple[str, str], ...] = ()
    """Names of tensors that have no place in the network, each with the reason."""
    normalization: str | None = None
    """The value of `config.target.normalization` that images were prepared with, where the rules know it."""
    outputs: str = "classes"
    """`classes` where outputs exclude each other, `regions` where each has a sigmoid of its own. An arm takes the head
    of an import only if its task is of the same kind."""


class Convert(Protocol):
    """What a module or file of rules defines under the name `convert`."""

    def __call__(self, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, Any]) -> Imported:
        """Takes the tensors of a file to a network.

        Args:
            tensors: Tensors by name, in PyTorch's layout. Floating-point tensors are float32.
            metadata: What else the file holds: texts, numbers, and lists and dicts of these.

        Raises:
            UserError: The tensors are not those of the network that the rules are for.
        """


class Weights(NamedTuple):
    """What was read from a file."""

    tensors: Tensors
    dtypes: Mapping[str, str]
    """The type of each tensor in the file, such as `float16`, before it was converted to float32."""
    metadata: Mapping[str, Any]
    """See `Convert`."""
    notes: tuple[str, ...]
    """What was found or done on the way, a sentence each."""
