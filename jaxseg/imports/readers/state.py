"""Finds the tensors of a network among all that a checkpoint holds: the optimizer's, counters, other networks'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseg.imports.readers.torch_files import Unread, is_tensor
from jaxseg.types import UserError

_SHOWN = 8
_PLAIN = (str, int, float, bool, type(None))
_OTHER = object()
"""Stands for a value that is not plain; None is."""
_DEPTH = 12
"""Deepest nesting that is followed; plans of nnU-Net have half of it."""


def find(found: Any, path: Path, *, key: str = "") -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Finds the one mapping from names to tensors.

    Args:
        found: What the file holds.
        path: The file, for messages.
        key: The entry to take, in place of a choice; entries within entries are joined by dots.

    Returns:
        The entry's name, empty if the file holds nothing else; its tensors; and everything else.

    Raises:
        UserError: There is none, there are several, or values among the tensors are none.
    """
    if not isinstance(found, Mapping):
        raise UserError(
            f"{path} holds {_kind(found)} and not tensors by name; torch.save(network.state_dict(), NEW_FILE) writes "
            f"what is read"
        )
    if key:
        return key, _entry(found, key, path), {name: v for name, v in found.items() if name != key}
    if not found:
        raise UserError(f"{path} holds nothing: no tensor, no entry")
    if all(isinstance(name, str) and is_tensor(value) for name, value in found.items()):
        return "", dict(found), {}
    states = [str(name) for name, value in found.items() if _is_state(value)]
    if len(states) == 1:
        return states[0], dict(found[states[0]]), {name: v for name, v in found.items() if name != states[0]}
    if len(states) > 1:
        raise UserError(
            f"{path} holds several sets of tensors: {', '.join(states)}; --key says which, such as --key={states[0]}"
        )
    among = [(name, value) for name, value in found.items() if not is_tensor(value)]
    if len(among) < len(found):
        name, value = among[0]
        raise UserError(
            f"{path}: {name!r} among its tensors is {_kind(value)} and no tensor ({len(among)} of {len(found)} entries "
            f"are none); a state dict holds tensors alone"
        )
    raise UserError(
        f"{path} holds no tensors by name, but {listed(found)}; --key=ENTRY names an entry within an entry, joined by "
        f"a dot"
    )


def listed(entries: Mapping[Any, Any]) -> str:
    """Returns the names of entries and what each is, the first ones of many."""
    shown = [f"{name} ({_kind(value)})" for name, value in list(entries.items())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")


def _entry(found: Mapping[Any, Any], key: str, path: Path) -> dict[str, Any]:
    at: Any = found
    for part in [key] if key in found else key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            raise UserError(f"--key={key}: {path} has no such entry; it has {listed(found)}")
        at = at[part]
    if not _is_state(at):
        raise UserError(f"--key={key}: this entry of {path} is {_kind(at)} and does not hold tensors by name")
    return dict(at)


def _is_state(value: Any) -> bool:
    """Whether a value maps names to tensors and nothing else; an optimizer's state does not."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and is_tensor(part) for name, part in value.items())
    )


def _kind(value: Any) -> str:
    if is_tensor(value):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Unread):
        return "a value of NumPy"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, int | float):
        return f"the number {value:g}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def plain_parts(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns what of a mapping is made of texts, numbers, lists and mappings, at every depth.

    One value of another kind does not take its neighbours with it: nnU-Net keeps the device beside the plans. A list
    is left out as a whole if one of its values is, since the others would change their places. So is an entry of the
    outermost mapping that holds tensors, such as the state of an optimizer.

    >>> plain_parts({"init_args": {"plans": {"a": [1, 2]}, "device": object()}, "rest": [1, object()]})
    {'init_args': {'plans': {'a': [1, 2]}}}
    """
    kept = (
        (str(name), _plain(value, _DEPTH))
        for name, value in found.items()
        if isinstance(name, str | int) and not _holds_tensors(value, _DEPTH)
    )
    return {name: value for name, value in kept if value is not _OTHER}


def _holds_tensors(value: Any, depth: int) -> bool:
    if isinstance(value, Mapping):
        value = [*value.values()]
    inner = depth > 0 and isinstance(value, list | tuple)
    return is_tensor(value) or (inner and any(_holds_tensors(part, depth - 1) for part in value))


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if depth and isinstance(value, list | tuple):
        parts = [_plain(part, depth - 1) for part in value]
        return _OTHER if any(part is _OTHER for part in parts) else parts
    if depth and isinstance(value, Mapping):
        kept = ((name, _plain(part, depth - 1)) for name, part in value.items() if isinstance(name, str | int))
        return {name: part for name, part in kept if part is not _OTHER}
    return _OTHER
