"""Parameter trees: paths, ordered first-match rules, and the run axis of stacked trees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.types import UserError

Rules = Sequence[tuple[str, str]]

STATISTICS = ("running_mean", "running_variance")
"""Names of parameters set by batches and not by gradients: the running statistics of batch norms."""


def is_statistic(path: str) -> bool:
    """Return whether a path is that of a running statistic."""
    return path.rpartition("/")[2] in STATISTICS


def path_name(path: Sequence[Any]) -> str:
    """Join a JAX key path with slashes: `encoder/level_0/conv_0/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a nested dict by slash-joined path, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict whose `flatten` is `leaves`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `jax.tree.map` with a function that gets the slash-joined path first."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: fn(path_name(path), *leaves), tree, *rest)


def label_params(params: Any, rules: Rules, *, rest: str | None = None) -> Any:
    """Label every parameter by the first rule whose pattern matches its path (`re.search`).

    Args:
        params: Parameter tree.
        rules: Ordered (regular expression, label) pairs.
        rest: Label of parameters that match no rule, of which there need not be any; None if every one must match.

    Returns:
        A tree of strings with the structure of `params`.

    Raises:
        UserError: A pattern is not a regular expression, a parameter matches no rule, or a rule decides nothing
            (a dead rule is nearly always a misspelt path).
    """
    compiled = []
    for pattern, label in rules:
        try:
            compiled.append((re.compile(pattern), label))
        except re.error as error:
            raise UserError(f"parameter rule {pattern!r} is not a regular expression: {error}") from None
    used: set[int] = set()

    def first_match(path: str, _: Any) -> str:
        for index, (pattern, label) in enumerate(compiled):
            if pattern.search(path):
                used.add(index)
                return label
        if rest is not None:
            return rest
        allowed = ", ".join(repr(pattern) for pattern, _ in rules)
        raise UserError(f"parameter {path!r} matches no rule; rules are {allowed}; end them with ('.*', LABEL)")

    labels = map_with_path(first_match, params)
    dead = [rules[index][0] for index in range(len(rules)) if index not in used]
    if dead:
        modules = sorted({"/".join(path.split("/")[:2]) for path in flatten(params)})
        raise UserError(
            f"parameter rule {dead[0]!r} decides no parameter: it matches none, or earlier rules take all it "
            f"matches; paths begin with {', '.join(modules)}"
        )
    return labels


def partition(tree: Any, labels: Any, label: str) -> tuple[Any, Any]:
    """Split a tree into two nested dicts: the leaves with `label`, and the others."""
    marks = flatten(labels)
    leaves = flatten(tree)
    chosen = unflatten({path: leaf for path, leaf in leaves.items() if marks[path] == label})
    others = unflatten({path: leaf for path, leaf in leaves.items() if marks[path] != label})
    return chosen, others


def merge(*trees: Any) -> dict[str, Any]:
    """Merge all leaves into one nested dict; the inverse of `partition`. Paths must be disjoint."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten(tree).items():
            if path in leaves:
                raise ValueError(f"parameter {path!r} is in two of the merged trees")
            leaves[path] = leaf
    return unflatten(leaves)


def replace(tree: Any, new: Any) -> Any:
    """Replace leaves of a tree by those of another, which holds some of its paths."""
    leaves = flatten(new)
    return map_with_path(lambda path, leaf: leaves.get(path, leaf), tree)


def count(tree: Any) -> int:
    """Return the number of elements in all leaves (arrays or shape structs)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def is_key(leaf: Any) -> bool:
    """Tell whether an array holds JAX's random keys, which NumPy does not know."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of equal structure along a new leading run axis, on the host: no program is compiled for a shape.

    Random keys are stacked where they are.
    """

    def join(*leaves: Any) -> Any:
        return jnp.stack(leaves) if is_key(leaves[0]) else np.stack([np.asarray(leaf) for leaf in leaves])

    return jax.tree.map(join, *trees)


def take(tree: Any, index: Any) -> Any:
    """Take one run (an integer) or several (an array or slice) of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def length(tree: Any) -> int:
    """Return the size of the leading axis shared by all leaves."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"leaves disagree on the size of the run axis: {sorted(sizes)}")
    return sizes.pop()
