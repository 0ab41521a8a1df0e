"""Optimizers over partitioned parameters: what is frozen has no gradient, no moments and no weight decay."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxseg import trees
from jaxseg.types import OptimSettings, UserError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "polynomial")

FREEZE_RULES: dict[str, trees.Rules] = {
    "none": ((".*", "train"),),
    "encoder": (("^encoder/", "frozen"), (".*", "train")),
    "decoder": (("^decoder/", "frozen"), (".*", "train")),
    "all_but_head": (("^head/", "train"), (".*", "frozen")),
}


def freeze_rules(freeze: str) -> trees.Rules:
    """Ordered (regex, label) rules for an arm's `freeze`.

    Args:
        freeze: `none`, `encoder`, `decoder`, `all_but_head`, or `regex:PATTERN` that freezes the paths it matches.

    Raises:
        UserError: Any other text.
    """
    if freeze.startswith("regex:"):
        return ((freeze.removeprefix("regex:"), "frozen"), (".*", "train"))
    if freeze not in FREEZE_RULES:
        allowed = ", ".join(repr(name) for name in FREEZE_RULES)
        raise UserError(f"freeze = {freeze!r}; allowed: {allowed}, 'regex:PATH_REGEX'")
    return FREEZE_RULES[freeze]


def freeze_labels(params: Any, freeze: str) -> Any:
    """What moves each parameter in training: `train` (gradients), `statistics` (batches) or `frozen` (nothing).

    Args:
        params: Parameters or their shapes.
        freeze: See `freeze_rules`; a frozen part's running statistics are frozen with it.

    Raises:
        UserError: An unknown `freeze`, or one that freezes nothing.
    """
    labels = trees.label_params(params, freeze_rules(freeze))
    return trees.map_with_path(
        lambda path, label: "statistics" if label == "train" and trees.is_statistic(path) else label, labels
    )


def make_schedule(settings: OptimSettings, total_steps: int) -> optax.Schedule:
    """Share of the peak rate at each step: linear warm-up from 0, then constant, cosine or polynomial to 0.

    Raises:
        UserError: Unknown schedule, or a warm-up that is not shorter than the training.
    """
    warmup, decay_steps = settings.warmup_steps, total_steps - settings.warmup_steps
    if decay_steps <= 0:
        raise UserError(
            f"optim.warmup_steps = {warmup} is not below the {total_steps} steps of training; "
            f"lower it or train for longer"
        )
    match settings.schedule:
        case "constant":
            after = optax.constant_schedule(1.0)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, decay_steps)
        case "polynomial":
            after = optax.polynomial_schedule(1.0, 0.0, 0.9, decay_steps)
        case unknown:
            raise UserError(f"optim.schedule = {unknown!r}; allowed: {', '.join(map(repr, SCHEDULES))}")
    # The warm-up ends one step early so that its first step, of rate 1/warmup, already moves the weights.
    rise = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def scale_by_rate(default_rate: float) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by `update(..., rate=...)`, an array: runs of one program may have different rates."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None, *, rate: Any = None, **_: Any) -> Any:
        del params
        factor = default_rate if rate is None else rate
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def decay_mask(params: Any) -> Any:
    """True for convolution kernels: biases and normalisation parameters are not decayed."""
    return trees.map_with_path(lambda path, _: path.endswith("kernel"), params)


def make_optimizer(settings: OptimSettings, labels: Any, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a parameter tree some of whose leaves are frozen.

    Args:
        settings: Name, rate, decay, schedule, clipping.
        labels: Tree of `train` / `statistics` / `frozen` with the structure of the parameters (`freeze_labels`).
        total_steps: Length of the schedule.

    Returns:
        A transformation whose `update` takes an optional `rate`, the peak learning rate of the run (default
        `settings.lr`). Leaves that are not trained hold no state and get zero updates. Clipping uses the norm over
        trained leaves.

    Raises:
        UserError: Unknown optimizer or schedule, or warm-up too long.
    """
    match settings.name:
        case "adam":
            direction = [optax.scale_by_adam()]
        case "adamw":
            direction = [optax.scale_by_adam(), optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)]
        case "sgd":
            decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
            direction = [decay, optax.trace(settings.momentum, nesterov=True)]
        case unknown:
            raise UserError(f"optim.name = {unknown!r}; allowed: {', '.join(map(repr, OPTIMIZERS))}")
    schedule = make_schedule(settings, total_steps)
    trained = optax.chain(
        *([optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []),
        *direction,
        optax.scale_by_schedule(lambda step: -schedule(step)),
        scale_by_rate(settings.lr),
    )
    return optax.partition({"train": trained, "statistics": optax.set_to_zero(), "frozen": optax.set_to_zero()}, labels)
