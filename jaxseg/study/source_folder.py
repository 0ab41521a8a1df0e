"""The folder of an imported network: a checkpoint that studies start from, and import.json, which says what it is.

The network lies there as a job's do, in `checkpoints/0` with a run axis of one run, sealed by checksums. Both files are
checked whenever they are read, as a folder may have been edited, damaged, or come from a stranger.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import checkpoint, paths, settings, workdirs
from jaxseg.manifest import DamagedError
from jaxseg.reserved import SOURCE
from jaxseg.settings import ModelSettings
from jaxseg.study import files
from jaxseg.study.record import Checkpoint
from jaxseg.study.typed_json import MismatchError, from_tree, to_tree
from jaxseg.study.versions import made_with
from jaxseg.types import Params, RunKey, TrainState, UserError

NAME = "import.json"
FORMAT = 1
RUN = RunKey(SOURCE, 0, 0, 0)
"""The key of the one network, whose seed stands for nothing."""
_MEND = "import the weights again, or take a whole copy of the folder from where it came"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """What became of the tensors of the file."""

    used: Mapping[str, str]
    """The tensor that each parameter was made from, by the parameter's path."""
    ignored: Mapping[str, str]
    """Why the rules leave a tensor out, by its name."""
    unused: tuple[str, ...]
    """Tensors that the rules say nothing of."""
    missing: tuple[str, ...]
    """Parameters of the network that nothing was found for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportRecord:
    """What import.json holds beside the network's settings."""

    format: int = FORMAT
    checkpoint: Checkpoint
    rules: str
    """The name of the rules, or of the user's file with them."""
    rules_sha256: str
    channels: int
    classes: int
    normalization: str | None = None
    """How images were normalised for the network, as a value of `target.normalization`; None if unknown."""
    outputs: str = "classes"
    """`classes`, which share a softmax, or `regions`, each with a sigmoid of its own."""
    names: Names
    notes: tuple[str, ...] = ()
    """What was found or done while the file was read."""


def is_import(folder: Path) -> bool:
    """Returns whether a folder holds an import, or should."""
    return files.was_written(folder / NAME)


def check_new(folder: Path) -> None:
    """Refuses a folder that an import cannot be written to.

    Raises:
        UserError: The folder holds something, or cannot hold checkpoints.
    """
    paths.check_trainable(folder, "--output")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output={folder} is not empty; give a new folder, so that nothing is lost")


def write(folder: Path, record: ImportRecord, model: ModelSettings, params: Params) -> None:
    """Writes the folder, which is there only once everything in it is whole.

    What an interrupted call leaves is a hidden folder beside it, which the next one removes.

    Args:
        folder: A folder that does not exist yet, or is empty.
        record: What the network is.
        model: Settings that build it.
        params: Its parameters, which may be fewer than the network has.

    Raises:
        UserError: See `check_new`.
    """
    check_new(folder)
    folder = paths.real(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=(),
        key=jax.random.key(0, impl="threefry2x32"),
        alive=jnp.ones((), bool),
    )
    stacked = jax.tree.map(lambda leaf: leaf[None], state)
    meta = {"runs": [RUN._asdict()], "made_with": made_with()}
    with checkpoint.open_manager(partial / "checkpoints", keep=1) as manager:
        checkpoint.save(manager, 0, stacked, meta)
    digest = checkpoint.params_digest(*place(partial), 0)
    files.write_json(partial / NAME, to_tree(record) | {"model": dataclasses.asdict(model), "params": digest})
    os.replace(partial, folder)


def place(folder: Path) -> tuple[Path, int]:
    """Returns the folder of checkpoints and the step at which the network lies."""
    return folder / "checkpoints", 0


def read(folder: Path) -> tuple[ImportRecord, ModelSettings] | None:
    """Reads what an import is; None if the folder holds none.

    Raises:
        DamagedError: import.json is damaged or of another shape, or the checkpoint beside it is another one.
        UserError: It is of a later version, or the folder holds links that lead out of it.
    """
    if not is_import(folder):
        return None
    workdirs.check_links(folder)
    path = folder / NAME
    tree = files.read_json(path, _MEND)
    try:
        record: ImportRecord = from_tree(ImportRecord, tree)
        if record.format != FORMAT:
            raise UserError(
                f"{path} is of format {record.format}, and this version of jaxseg reads {FORMAT}; import the weights "
                f"again with this version"
            )
        model = settings.parse_model(_object(tree.get("model")))
    except MismatchError as error:
        raise DamagedError(path, f"it is no record of an import: {error}", _MEND) from None
    if tree.get("params") != checkpoint.params_digest(*place(folder), 0):
        raise DamagedError(path, "the checkpoint beside it is not the one that it was written with", _MEND)
    return record, model


def _object(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise MismatchError("model is missing, or no object")
    return tree


def differences(own: ModelSettings, imported: ModelSettings) -> tuple[str, ...]:
    """Returns the fields in which a study's network differs from an imported one, a phrase each.

    Dropout is left out: it is a choice of the training.
    """
    changed = [
        (name, getattr(own, name), getattr(imported, name))
        for name in (field.name for field in dataclasses.fields(ModelSettings))
        if name != "dropout" and getattr(own, name) != getattr(imported, name)
    ]
    return tuple(f"model.{name} = {here!r} (imported: {there!r})" for name, here, there in changed)


def overrides(folder: Path, record: ImportRecord, model: ModelSettings) -> tuple[str, ...]:
    """Returns the options of a study that starts from an import, as the command line takes them."""
    fields = {
        "pretrain.from_workdir": str(folder),
        "pretrain.share": "one",
        **{f"model.{name}": value for name, value in dataclasses.asdict(model).items() if name != "dropout"},
    }
    if record.normalization is not None:
        fields["target.normalization"] = record.normalization
    return tuple(f"--config.{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(value: Any) -> str:
    """A value as a shell hands it on."""
    return shlex.quote(str(value))
