"""How weights start: random, loaded from a source network, or random with a source tensor's mean and variance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxseg import trees
from jaxseg.streams import fold_in_name
from jaxseg.types import Params, UserError


class LoadRow(NamedTuple):
    """What became of one parameter: `loaded`, `mean_var`, `re-initialised`, `random` (not asked for) or `unused`."""

    path: str
    status: str
    shape: tuple[int, ...] | None
    source_shape: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """Elements of the parameter."""
        count = 1
        for length in self.shape or self.source_shape or ():
            count *= length
        return count


LoadTable = tuple[LoadRow, ...]

_STATUS = {"load": "loaded", "mean_var": "mean_var"}


def transfer_rules(init: str) -> trees.Rules:
    """Ordered (regex, label) rules for an arm's `init`; labels are `load`, `mean_var` and `random`.

    Args:
        init: `random`, `pretrained`, `pretrained:PATH_REGEX` (paths it matches are loaded) or `mean_var`.

    Raises:
        UserError: Any other text.
    """
    if init.startswith("pretrained:"):
        return ((init.removeprefix("pretrained:"), "load"), (".*", "random"))
    rules: dict[str, trees.Rules] = {
        "random": ((".*", "random"),),
        "pretrained": ((".*", "load"),),
        "mean_var": ((".*", "mean_var"),),
    }
    if init not in rules:
        allowed = ", ".join(repr(name) for name in rules)
        raise UserError(f"init = {init!r}; allowed: {allowed}, 'pretrained:PATH_REGEX'")
    return rules[init]


def make_load_table(start: Params, source: Params, rules: trees.Rules) -> LoadTable:
    """Says for every parameter of both networks what a transfer does with it, from shapes alone.

    Args:
        start: Parameters (or their shapes) of the network to be trained.
        source: Parameters (or their shapes) of the source network.
        rules: See `transfer_rules`.

    Raises:
        UserError: A rule that matches nothing.
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
        rows.append(LoadRow(path, status, shape, other.get(path)))
    taken = {row.path for row in rows if row.status in _STATUS.values()}
    rows += [LoadRow(path, "unused", None, shape) for path, shape in other.items() if path not in taken]
    return tuple(rows)


def check_load(table: LoadTable, *, min_loaded: float, arm: str) -> None:
    """Refuses a transfer that found too little of what was asked for.

    Raises:
        UserError: The loaded share of the parameters asked for is below `min_loaded`.
    """
    asked = [row for row in table if row.status in ("loaded", "mean_var", "re-initialised")]
    total = sum(row.size for row in asked)
    found = sum(row.size for row in asked if row.status != "re-initialised")
    if asked and found < min_loaded * total:
        missing = ", ".join(
            f"{row.path} {row.shape} (source: {row.source_shape or 'absent'})"
            for row in asked
            if row.status == "re-initialised"
        )
        raise UserError(
            f"arm {arm!r}: only {found} of {total} parameters asked for match the source network by path and shape "
            f"({found / total:.0%}); pretrain.min_loaded = {min_loaded:g} asks for more. Not matched: {missing}. "
            f"Use the same model settings for both, or lower pretrain.min_loaded"
        )


def format_load_table(table: LoadTable) -> str:
    """The table as text: one line a parameter, then the totals."""
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
    start: Params, source: Params, rules: trees.Rules, *, key: Key[Array, ""] | None = None
) -> tuple[Params, LoadTable]:
    """Starts a network from another's parameters, matched by path and shape.

    Args:
        start: Parameters as initialised; what is not loaded keeps them.
        source: Parameters of the source network, which may have other classes or channels.
        rules: See `transfer_rules`.
        key: Needed where a rule says `mean_var`: tensors are drawn from a normal with the source tensor's mean and
            variance (Raghu et al. 2019, Transfusion).

    Returns:
        Parameters with the structure of `start`, and what became of each.

    Raises:
        UserError: A rule that matches nothing.
    """
    table = make_load_table(start, source, rules)
    status = {row.path: row.status for row in table if row.shape is not None}
    given = trees.flatten(source)

    def draw(path: str, like: jax.Array) -> jax.Array:
        if key is None:
            raise ValueError("transfer_params needs a key to draw mean_var tensors")
        return like.mean() + like.std() * jax.random.normal(fold_in_name(key, path), like.shape, like.dtype)

    def choose(path: str, leaf: jax.Array) -> jax.Array:
        if status[path] == "loaded":
            return jnp.asarray(given[path], leaf.dtype)
        return draw(path, given[path]) if status[path] == "mean_var" else leaf

    return trees.map_with_path(choose, start), table


def make_start(rules: trees.Rules) -> Callable[[Params, Params, Key[Array, ""]], Params]:
    """The array half of `transfer_params`, for use inside compiled code."""
    return lambda start, source, key: transfer_params(start, source, rules, key=key)[0]
