"""How weights start: random, loaded from a source network, or random with the mean and variance of a source tensor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxseg import trees
from jaxseg.settings.schema import INITS, Init
from jaxseg.streams import fold_in_name
from jaxseg.types import Params, UserError


class LoadRow(NamedTuple):
    """The fate of one parameter.

    The status is `loaded`, `adapted` (to other image channels), `mean_var`, `re-initialised`, `random` (not asked for)
    or `unused`.
    """

    path: str
    status: str
    shape: tuple[int, ...] | None
    source_shape: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """Number of elements of the parameter."""
        count = 1
        for length in self.shape or self.source_shape or ():
            count *= length
        return count


LoadTable = tuple[LoadRow, ...]

_STATUS = {"load": "loaded", "mean_var": "mean_var"}
_FOUND = ("loaded", "adapted", "mean_var")
_NAMED = 6
"""Parameters without a match that a message names."""


def transfer_rules(init: str) -> trees.Rules:
    """Return the ordered (regex, label) rules for an arm's `init`; labels are `load`, `mean_var` and `random`.

    Args:
        init: `random`, `pretrained`, `pretrained:PATH_REGEX` (loads the paths it matches) or `mean_var`.

    Raises:
        UserError: `init` is none of these.
    """
    if init.startswith("pretrained:"):
        return ((init.removeprefix("pretrained:"), "load"), (".*", "random"))
    if not INITS.holds(init):
        raise UserError(f"init = {init!r}; allowed: {INITS.text}")
    rules: dict[Init, trees.Rules] = {
        "random": ((".*", "random"),),
        "pretrained": ((".*", "load"),),
        "mean_var": ((".*", "mean_var"),),
    }
    return rules[cast(Init, init)]


def make_load_table(start: Params, source: Params, rules: trees.Rules, *, adapt: Collection[str] = ()) -> LoadTable:
    """List what a transfer does with every parameter of both networks, from shapes alone.

    Args:
        start: Parameters (or their shapes) of the network to be trained.
        source: Parameters (or their shapes) of the source network.
        rules: See `transfer_rules`.
        adapt: Paths of kernels that read the image, which are adapted to other image channels; kernels of another shape
            that are not among them are re-initialised.

    Raises:
        UserError: A rule matches nothing.
    """
    wanted = trees.flatten(trees.label_params(start, rules))
    # Running statistics belong to the source's weights, of which `mean_var` takes none.
    wanted = {
        path: "random" if label == "mean_var" and trees.is_statistic(path) else label for path, label in wanted.items()
    }
    own = {path: tuple(leaf.shape) for path, leaf in trees.flatten(start).items()}
    other = {path: tuple(leaf.shape) for path, leaf in trees.flatten(source).items()}
    rows = []
    for path, shape in own.items():
        if wanted[path] == "random":
            status = "random"
        else:
            status = _STATUS[wanted[path]] if other.get(path) == shape else "re-initialised"
            if wanted[path] == "load" and path in adapt and _differ_in_channels(shape, other.get(path)):
                status = "adapted"
        rows.append(LoadRow(path, status, shape, other.get(path)))
    taken = {row.path for row in rows if row.status in _FOUND}
    rows += [LoadRow(path, "unused", None, shape) for path, shape in other.items() if path not in taken]
    return tuple(rows)


def for_head_of(source: Params, source_overlaps: bool, overlaps: bool) -> Params:
    """Return a source network's parameters, or their shapes, without a head that answers another kind of question.

    A softmax over classes and one sigmoid per region may have equally many outputs, of which none means the same.

    Args:
        source: Parameters of the source network.
        source_overlaps: Whether its outputs are regions that overlap.
        overlaps: Whether those of the network to be trained are.
    """
    return source if source_overlaps == overlaps else {name: part for name, part in source.items() if name != "head"}


def _differ_in_channels(shape: tuple[int, ...], other: tuple[int, ...] | None) -> bool:
    """Whether two kernels `[*taps, channels, features]` differ in their channels alone."""
    same = other is not None and len(other) == len(shape) and (shape[:-2], shape[-1]) == (other[:-2], other[-1])
    return same and shape != other


def check_load(table: LoadTable, *, min_loaded: float, arm: str, differs: Sequence[str] = ()) -> None:
    """Refuse a transfer that found too few of the parameters asked for.

    Args:
        table: What the transfer does with every parameter.
        min_loaded: Least share of the parameters asked for.
        arm: Name of the arm, for the message.
        differs: The settings in which the two networks are known to differ, for the message.

    Raises:
        UserError: The loaded share of the parameters asked for is below `min_loaded`.
    """
    asked = [row for row in table if row.status in (*_FOUND, "re-initialised")]
    total = sum(row.size for row in asked)
    found = sum(row.size for row in asked if row.status != "re-initialised")
    if asked and found < min_loaded * total:
        unmatched = [row for row in asked if row.status == "re-initialised"]
        missing = ", ".join(
            f"{row.path} {row.shape} (source: {row.source_shape or 'absent'})" for row in unmatched[:_NAMED]
        )
        if more := len(unmatched[_NAMED:]):
            missing += f", and {more} more"
        raise UserError(
            f"arm {arm!r}: only {found} of {total} parameters asked for match the source network by path and shape "
            f"({found / total:.0%}); pretrain.min_loaded = {min_loaded:g} asks for more. "
            + (f"The networks differ in {'; '.join(differs)}. " if differs else "")
            + f"Not matched: {missing}. Use the same model settings for both, or lower pretrain.min_loaded"
        )


def warn_of_frozen(table: LoadTable, labels: Params, *, arm: str) -> None:
    """Warn of parameters that were to be loaded, start anew instead, and are never trained.

    Args:
        table: What the transfer does with every parameter.
        labels: Tree of `train` / `statistics` / `frozen` of the network.
        arm: Name of the arm, for the message.
    """
    frozen = {path for path, label in trees.flatten(labels).items() if label == "frozen"}
    anew = [row.path for row in table if row.status == "re-initialised" and row.path in frozen]
    if anew:
        warnings.warn(
            f"arm {arm!r} freezes {len(anew)} parameter(s) that its source network does not have in this shape, such "
            f"as {anew[0]}: they stay as they were initialised. Where channels differ, set pretrain.adapt_channels",
            stacklevel=2,
        )


def format_load_table(table: LoadTable) -> str:
    """Format the table as text: one line per parameter, then the totals."""
    width = max(len(row.path) for row in table)
    lines = [f"{'parameter':<{width}}  {'status':<14}  {'shape':<22}  source shape"]
    for row in table:
        lines.append(
            f"{row.path:<{width}}  {row.status:<14}  {row.shape or '-'!s:<22}  {row.source_shape or '-'}".rstrip()
        )
    totals: dict[str, int] = {}
    for row in table:
        totals[row.status] = totals.get(row.status, 0) + row.size
    lines.append("")
    lines += [f"{status}: {size} parameters" for status, size in totals.items()]
    return "\n".join(lines) + "\n"


def transfer_params(
    start: Params,
    source: Params,
    rules: trees.Rules,
    *,
    key: Key[Array, ""] | None = None,
    adapt: Collection[str] = (),
) -> tuple[Params, LoadTable]:
    """Start a network from the parameters of another, matched by path and shape.

    Args:
        start: Initialised parameters; those that are not loaded stay.
        source: Parameters of the source network, which may have other classes or channels.
        rules: See `transfer_rules`.
        key: Key for rules that say `mean_var`, which draw tensors from a normal with the mean and variance of the
            source tensor (Raghu et al. 2019, Transfusion).
        adapt: See `make_load_table`. Every channel of an adapted kernel is the sum of the source kernel over
            channels, divided by the number of channels: on equal channels the response is that of the source.

    Returns:
        The parameters with the structure of `start`, and the fate of each.

    Raises:
        UserError: A rule matches nothing.
    """
    table = make_load_table(start, source, rules, adapt=adapt)
    status = {row.path: row.status for row in table if row.shape is not None}
    given = trees.flatten(source)

    def draw(path: str, like: jax.Array) -> jax.Array:
        if key is None:
            raise ValueError("transfer_params needs a key to draw mean_var tensors")
        return like.mean() + like.std() * jax.random.normal(fold_in_name(key, path), like.shape, like.dtype)

    def choose(path: str, leaf: jax.Array) -> jax.Array:
        if status[path] == "loaded":
            return jnp.asarray(given[path], leaf.dtype)
        if status[path] == "adapted":
            total = jnp.asarray(given[path], leaf.dtype).sum(-2, keepdims=True)
            return jnp.broadcast_to(total / leaf.shape[-2], leaf.shape)
        return draw(path, given[path]) if status[path] == "mean_var" else leaf

    return trees.map_with_path(choose, start), table


def make_start(
    rules: trees.Rules, *, adapt: Collection[str] = ()
) -> Callable[[Params, Params, Key[Array, ""]], Params]:
    """Return the array part of `transfer_params`, for use inside compiled code."""

    def start_from(start: Params, source: Params, key: Key[Array, ""]) -> Params:
        return transfer_params(start, source, rules, key=key, adapt=adapt)[0]

    return start_from
