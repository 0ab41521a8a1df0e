"""Optimizers over partitioned parameters: frozen parameters have no gradient, no moments and no weight decay.

Trained parameters may have rates of their own, by path (`rate_factors`), and all but the head may wait for some steps
before they are trained (`head_first`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
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
    return optax.join_schedules([_rise(warmup), after], [warmup]) if warmup else after


def _rise(warmup: int) -> optax.Schedule:
    """The warm-up. It ends one step early so that its first step, of rate 1/warmup, already moves the weights."""
    return optax.linear_schedule(1.0 / max(warmup, 1), 1.0, max(warmup - 1, 1))


# ------------------------------------------------------------------------------------------------------ rates by path

HEAD, REST = "head", "rest"


def head_steps(settings: OptimSettings, total_steps: int) -> int:
    """Return the number of steps in which the head alone is trained.

    >>> head_steps(OptimSettings(head_first=0.25), 1000)
    250
    """
    return max(int(settings.head_first * total_steps), 1) if settings.head_first else 0


def fine_tuning(settings: OptimSettings) -> str:
    """Return in words what parameters do not have in common: when their training begins, and their rates.

    >>> fine_tuning(OptimSettings(head_first=0.2, rate_factors=(("^encoder/", 0.1),)))
    'the head alone for 20 % of the steps; 0.1 times the rate where ^encoder/ matches'
    """
    first = [f"the head alone for {100 * settings.head_first:g} % of the steps"] if settings.head_first else []
    rates = [f"{factor:g} times the rate where {pattern} matches" for pattern, factor in settings.rate_factors]
    return "; ".join([*first, *rates])


def _part(path: str) -> str:
    return HEAD if path.startswith("head/") else REST


def _by_part(head: optax.GradientTransformation, rest: optax.GradientTransformation) -> optax.GradientTransformation:
    """Transform the head and the rest of a tree, which may have been masked, each in its own way."""
    return optax.partition(
        {HEAD: head, REST: rest}, lambda tree: trees.map_with_path(lambda path, _: _part(path), tree)
    )


def head_first(
    direction: optax.GradientTransformation,
    *,
    steps: int,
    warmup: int,
    clip: Sequence[optax.GradientTransformation] = (),
) -> optax.GradientTransformation:
    """Train the head alone for some steps, and everything from then on (Kumar et al. 2022, arXiv:2202.10054).

    Until then the rest has no updates and its part of the optimizer stands still: Adam's moments and their bias
    correction begin at the switch, as they would in a second program that starts there. With a rate of 0 instead they
    would hold the gradients of a network whose head was random, and weights would decay. The rest has a warm-up of its
    own after the switch. One program covers both phases, so that checkpoints, averages and snapshots are those of any
    other arm; the price is that gradients of the rest are computed in the first phase too, and thrown away.

    Args:
        direction: What turns gradients into a direction, with weight decay.
        steps: Number of steps of the head alone.
        warmup: Number of steps in which the rate of the rest rises after that.
        clip: What clips all gradients together, those of the rest counting only after the switch.
    """

    def later(inner: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.conditionally_mask(inner, lambda step: step >= steps)

    rising = optax.chain(direction, optax.scale_by_schedule(_rise(warmup))) if warmup else direction
    return optax.chain(_by_part(optax.identity(), later(optax.identity())), *clip, _by_part(direction, later(rising)))


def rate_factors(settings: OptimSettings, labels: Any) -> Any:
    """Return the factor of each parameter's rate: that of the first rule of `rate_factors` that matches, else 1.

    Args:
        settings: The optimizer's settings.
        labels: Tree of `train` / `statistics` / `frozen`.

    Raises:
        UserError: A rule decides no parameter that is trained.
    """
    factors = [factor for _, factor in settings.rate_factors]
    rules = [(pattern, str(place)) for place, (pattern, _) in enumerate(settings.rate_factors)]
    trained, others = trees.partition(labels, labels, "train")
    try:
        places = trees.label_params(trained, rules, rest="")
    except UserError as error:
        raise UserError(f"optim.rate_factors: {error}; of parameters that are not trained it may match any") from None
    known = trees.merge(places, jax.tree.map(lambda _: "", others))
    return jax.tree.map(lambda place: factors[int(place)] if place else 1.0, known)


def relative_rates(settings: OptimSettings, labels: Any, path: str, total_steps: int) -> Float[np.ndarray, " steps"]:
    """Return the rate of one parameter at every step, as a share of that of the run."""
    shares = np.full(total_steps, trees.flatten(rate_factors(settings, labels))[path])
    if _part(path) == REST and (waits := head_steps(settings, total_steps)):
        after, warmup = np.arange(total_steps - waits), settings.warmup_steps
        shares[:waits] = 0.0
        shares[waits:] *= np.minimum((after + 1) / warmup, 1.0) if warmup else 1.0
    return shares


def _check_parts(settings: OptimSettings, labels: Any) -> None:
    """Refuse `head_first` where the head, or all but the head, is not trained."""
    parts = {_part(path) for path, label in trees.flatten(labels).items() if label == "train"}
    if settings.head_first and parts != {HEAD, REST}:
        if any(path.startswith("restoration/") for path in trees.flatten(labels)):
            raise UserError(
                f"optim.head_first = {settings.head_first}, and source networks that restore images have no head; set "
                f"it for arms alone, as in config.arms.transfer.optim.head_first, or take pretrain.objective = 'labels'"
            )
        missing = "its head is not" if HEAD not in parts else "nothing but its head is"
        raise UserError(
            f"optim.head_first = {settings.head_first} with a network of which {missing} trained; allowed: 0 with this "
            f"'freeze'"
        )


def scale_by_rate(default_rate: float) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by the array passed as `update(..., rate=...)`: runs of one program may have different rates."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None, *, rate: Any = None, **_: Any) -> Any:
        del params
        factor = default_rate if rate is None else rate
        return jax.tree.map(lambda update: factor * update, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_path(factors: Any) -> optax.GradientTransformation:
    """Multiply updates by the factor of each parameter; leaves of the updates may be masked."""
    known = trees.flatten(factors)
    return optax.stateless(lambda updates, _: trees.map_with_path(lambda path, update: known[path] * update, updates))


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
        UserError: See `make_schedule` and `rate_factors`; or `head_first` without a head, or without a rest, to train.
    """
    schedule = make_schedule(settings, total_steps)
    _check_parts(settings, labels)
    match settings.name:
        case "adam":
            direction = [optax.scale_by_adam()]
        case "adamw":
            direction = [optax.scale_by_adam(), optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)]
        case "sgd":
            decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
            direction = [decay, optax.trace(settings.momentum, nesterov=True)]
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []
    if settings.head_first:
        waits = {"steps": head_steps(settings, total_steps), "warmup": settings.warmup_steps}
        steps = [head_first(optax.chain(*direction), clip=clip, **waits)]
    else:
        steps = [*clip, *direction]
    trained = optax.chain(
        *steps,
        optax.scale_by_schedule(lambda step: -schedule(step)),
        *([scale_by_validation()] if settings.schedule == "plateau" else []),
        scale_by_rate(settings.lr),
        *([scale_by_path(rate_factors(settings, labels))] if settings.rate_factors else []),
    )
    return optax.partition({"train": trained, "statistics": optax.set_to_zero(), "frozen": optax.set_to_zero()}, labels)
