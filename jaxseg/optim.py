"""Optimizers over partitioned parameters: frozen parameters have no gradient, no moments and no weight decay."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxseg import trees
from jaxseg.settings import OptimSettings
from jaxseg.settings.kinds import check
from jaxseg.settings.schema import FREEZES, Freeze
from jaxseg.types import UserError

FREEZE_RULES: dict[Freeze, trees.Rules] = {
    "none": ((".*", "train"),),
    "encoder": (("^encoder/", "frozen"), (".*", "train")),
    "decoder": (("^decoder/", "frozen"), (".*", "train")),
    "all_but_head": (("^head/", "train"), (".*", "frozen")),
}


def freeze_rules(freeze: str) -> trees.Rules:
    """Return the ordered (regex, label) rules for an arm's `freeze`.

    Args:
        freeze: `none`, `encoder`, `decoder`, `all_but_head`, or `regex:PATTERN`, which freezes the paths it matches.

    Raises:
        UserError: `freeze` is none of these.
    """
    if freeze.startswith("regex:"):
        return ((freeze.removeprefix("regex:"), "frozen"), (".*", "train"))
    if not FREEZES.holds(freeze):
        raise UserError(f"freeze = {freeze!r}; allowed: {FREEZES.text}")
    return FREEZE_RULES[cast(Freeze, freeze)]


def freeze_labels(params: Any, freeze: str) -> Any:
    """Label each parameter by what changes it in training: `train` (gradients), `statistics` (batches) or `frozen`.

    Args:
        params: Parameters, or their shapes.
        freeze: See `freeze_rules`. Running statistics in a frozen part are frozen with it.

    Raises:
        UserError: `freeze` is unknown or freezes nothing.
    """
    labels = trees.label_params(params, freeze_rules(freeze))
    return trees.map_with_path(
        lambda path, label: "statistics" if label == "train" and trees.is_statistic(path) else label, labels
    )


def make_schedule(settings: OptimSettings, total_steps: int) -> optax.Schedule:
    """Make the schedule of the share of the peak rate: warm-up from 0, then constant, cosine or polynomial to 0.

    `plateau` is constant here, since validation lowers its rate (see `scale_by_validation`).

    Raises:
        UserError: A setting is not allowed, or the warm-up is not shorter than the training.
    """
    check(settings, "optim.")
    warmup, decay_steps = settings.warmup_steps, total_steps - settings.warmup_steps
    if decay_steps <= 0:
        raise UserError(
            f"optim.warmup_steps = {warmup} is not below the {total_steps} steps of training; "
            f"lower it or train for longer"
        )
    match settings.schedule:
        case "constant" | "plateau":
            after = optax.constant_schedule(1.0)
        case "cosine":
            after = optax.cosine_decay_schedule(1.0, decay_steps)
        case "polynomial":
            after = optax.polynomial_schedule(1.0, 0.0, 0.9, decay_steps)
    # The warm-up ends one step early so that its first step, of rate 1/warmup, already moves the weights.
    rise = optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup]) if warmup else after


def scale_by_rate(default_rate: float) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by the array passed as `update(..., rate=...)`: runs of one program may have different rates."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None, *, rate: Any = None, **_: Any) -> Any:
        del params
        factor = default_rate if rate is None else rate
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class ValidationState(NamedTuple):
    """Effect of a run's validations on its rate. `observe` finds these fields by their names, unique in the state."""

    rate_scale: Float[Array, ""]
    last_dsc: Float[Array, ""]
    """DSC of the last validation; 0 before the first."""


def scale_by_validation() -> optax.GradientTransformation:
    """Multiply updates by a scale that `observe` changes between steps, run by run."""

    def init(params: Any) -> ValidationState:
        del params
        return ValidationState(jnp.ones(()), jnp.zeros(()))

    def update(updates: Any, state: ValidationState, params: Any = None) -> Any:
        del params
        return jax.tree.map(lambda update: state.rate_scale * update, updates), state

    return optax.GradientTransformation(init, update)


def observe(opt_state: Any, dsc: Float[Array, ""], settings: OptimSettings) -> Any:
    """Update the optimizer state after a validation: lower the rate if DSC fell below a share of the last one.

    Only `plateau` does so, by Karimi et al.'s rule: the rate is multiplied by 0.9 when validation Dice is below 0.995
    of the last.
    """
    if settings.schedule != "plateau":
        return opt_state
    scale, last = (optax.tree.get(opt_state, name) for name in ValidationState._fields)
    fell = dsc < settings.plateau_ratio * last
    return optax.tree.set(opt_state, rate_scale=jnp.where(fell, settings.plateau_factor * scale, scale), last_dsc=dsc)


def decay_mask(params: Any) -> Any:
    """Return True for kernels, which alone have weight decay; biases and normalisation parameters have none."""
    return trees.map_with_path(lambda path, _: path.endswith("kernel"), params)


def make_optimizer(settings: OptimSettings, labels: Any, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """Make the optimizer of a parameter tree with frozen leaves.

    Args:
        settings: Name, rate, decay, schedule and clipping.
        labels: Tree of `train` / `statistics` / `frozen` with the structure of the parameters (see `freeze_labels`).
        total_steps: Length of the schedule.

    Returns:
        A transformation whose `update` takes an optional `rate`, the peak learning rate of the run (default
        `settings.lr`). Leaves that are not trained have no state and get zero updates. Clipping uses the norm over the
        trained leaves.

    Raises:
        UserError: See `make_schedule`.
    """
    schedule = make_schedule(settings, total_steps)
    match settings.name:
        case "adam":
            direction = [optax.scale_by_adam()]
        case "adamw":
            direction = [optax.scale_by_adam(), optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)]
        case "sgd":
            decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
            direction = [decay, optax.trace(settings.momentum, nesterov=True)]
    trained = optax.chain(
        *([optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []),
        *direction,
        optax.scale_by_schedule(lambda step: -schedule(step)),
        *([scale_by_validation()] if settings.schedule == "plateau" else []),
        scale_by_rate(settings.lr),
    )
    return optax.partition({"train": trained, "statistics": optax.set_to_zero(), "frozen": optax.set_to_zero()}, labels)
