"""One run's training as pure functions: initial state, one step, and many steps in one compiled loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxseg import averaging, optim, trees
from jaxseg.models import norms
from jaxseg.settings import OptimSettings
from jaxseg.streams import fold_in_name, step_key
from jaxseg.types import Batch, Best, Cohort, Frozen, Metrics, Params, RunInputs, StepLoop, TrainState

Sample = Callable[[Key[Array, ""], Cohort, RunInputs], Batch]
Loss = Callable[[Float[Array, "batch *spatial classes"], Any], Float[Array, ""]]
"""Loss of the network's output and of `Batch.label`."""
TrainStep = Callable[[TrainState, RunInputs, Cohort, Frozen], tuple[TrainState, Metrics]]


def init_params(key: Key[Array, ""], model: nn.Module, image: Float[Array, "batch *spatial channels"]) -> Params:
    """Initialise random parameters of a network for images of this shape."""
    return model.init(key, image)["params"]


def init_state(
    init_key: Key[Array, ""],
    order_key: Key[Array, ""],
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    image: Float[Array, "batch *spatial channels"],
    pretrained: Callable[[Params, Key[Array, ""]], Params] | None = None,
    *,
    keep_best: bool = False,
    averaged: Any = None,
) -> TrainState:
    """Return the state before the first step: model init, then loaded weights, then optimizer init, in this order.

    Args:
        init_key: Key of the stream of initial weights.
        order_key: Key of the stream of batches, augmentation and dropout.
        model: The network.
        tx: The optimizer; its moments start from the loaded weights' structure.
        image: An array of the shape that the network will see.
        pretrained: Turns random parameters into the start (see `transfer.make_start`); None keeps the random ones.
        keep_best: Whether the state has a place for the parameters of the best validation; it holds the start at first.
        averaged: Tree of labels (see `optim.freeze_labels`) if the late weights of the run are averaged; None if not.
    """
    params = init_params(init_key, model, image)
    if pretrained is not None:
        params = pretrained(params, fold_in_name(init_key, "transfer"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        key=order_key,
        alive=jnp.ones((), bool),
        best=Best(params, jnp.full((), -jnp.inf), jnp.zeros((), jnp.int32)) if keep_best else None,
        average=None if averaged is None else averaging.start_average(params, averaged),
    )


def make_observe(settings: OptimSettings) -> Callable[[TrainState, Float[Array, ""]], TrainState]:
    """Make the update after a validation: the rate of schedule `plateau`, and the best parameters where they are kept.

    Returns:
        `observe(state, dsc) -> state`. With NaN as DSC, only the last DSC that `plateau` remembers changes.
    """

    def observe(state: TrainState, dsc: Float[Array, ""]) -> TrainState:
        best = state.best
        if best is not None:
            better = dsc > best.dsc
            now = Best(state.params, dsc, state.step)
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return dataclasses.replace(state, opt_state=optim.observe(state.opt_state, dsc, settings), best=best)

    return observe


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    loss: Loss,
    sample: Sample,
    labels: Any,
    *,
    accumulate: int = 1,
    windows: averaging.Windows = (),
) -> TrainStep:
    """Make one training step of one run.

    The gradient is taken with respect to the trained leaves alone, so that the backward pass of frozen parts is never
    built. There is no dropout in frozen layers. Running statistics of batch norms follow the batch unless they are
    frozen. A non-finite loss or gradient clears `alive`; from then on, the run's parameters and moments stay as they
    were before that step, while its step counter still advances with the others.

    Args:
        model: The network.
        tx: The result of `optim.make_optimizer` for the same labels.
        loss: Loss of the network's output and of what the batch holds as `label`.
        sample: Draws a batch; see `data.make_sample`.
        labels: Tree of `train` / `statistics` / `frozen` with the structure of a state's params; see
            `optim.freeze_labels`.
        accumulate: Number of equal parts into which the batch is split. They are processed one after another, and their
            losses and gradients averaged: this needs less memory and gives the same step for losses that average over
            cases.
        windows: Steps whose weights are averaged if the state has a place for it; see `averaging.make_windows`.

    Returns:
        `step(state, run, cohort, frozen) -> (state, metrics)`, where `frozen` holds parameters that all runs share, or
        `{}`; the metrics are the scalars `loss` and `alive`.
    """
    learn = _make_learn(model, tx, loss, labels, accumulate=accumulate, windows=windows)

    def step(state: TrainState, run: RunInputs, cohort: Cohort, frozen: Frozen) -> tuple[TrainState, Metrics]:
        return learn(state, run, frozen, sample(step_key(state.key, state.step, "sample"), cohort, run))

    return step


def _make_learn(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    loss: Loss,
    labels: Any,
    *,
    accumulate: int = 1,
    windows: averaging.Windows = (),
    method: str = "__call__",
) -> Callable[[TrainState, RunInputs, Frozen, Batch], tuple[TrainState, Metrics]]:
    """A step without its sampling; `method` of the network takes the batch's image to logits."""
    frozen_paths = [path for path, label in trees.flatten(labels).items() if label == "frozen"]

    def learn(state: TrainState, run: RunInputs, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout = step_key(state.key, state.step, "dropout")
        trained, fixed = trees.partition(state.params, labels, "train")
        network = model.clone(frozen=frozenset((*frozen_paths, *trees.flatten(frozen))))

        def objective(trained: Params, batch: Batch, dropout: Key[Array, ""]) -> tuple[Float[Array, ""], Params]:
            variables = {"params": trees.merge(trained, fixed, frozen)}
            rngs, mutable = {"dropout": dropout}, [norms.STATISTICS]
            logits, seen = network.apply(variables, batch.image, train=True, rngs=rngs, mutable=mutable, method=method)
            return loss(logits, batch.label), seen.get(norms.STATISTICS, {})

        gradient = accumulated(jax.value_and_grad(objective, has_aux=True), accumulate)
        (value, statistics), grads = gradient(trained, batch, dropout)
        # A plain sum of squares is finite if and only if every gradient is (up to overflow, which is as bad).
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads, squared=True))
        alive = state.alive & finite

        all_grads = trees.merge(grads, jax.tree.map(jnp.zeros_like, fixed))
        updates, opt_state = tx.update(all_grads, state.opt_state, state.params, rate=run.rate)
        updates, _ = trees.partition(updates, labels, "train")
        keep = lambda new, old: jnp.where(alive, new, old)  # noqa: E731
        trained = jax.tree.map(keep, optax.apply_updates(trained, updates), trained)
        fixed = jax.tree.map(keep, trees.replace(fixed, statistics), fixed)
        params, average = trees.merge(trained, fixed), state.average
        if average is not None:
            average = averaging.update_average(average, params, averaging.num_averaged(state.step + 1, windows))
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            alive=alive,
            average=average,
        )
        return new_state, {"loss": value, "alive": alive}

    return learn


def accumulated(gradient: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Average `(trained, batch, dropout key) -> ((loss, statistics), gradients)` over equal parts of the batch."""
    if parts == 1:
        return gradient

    def mean_of_parts(trained: Params, batch: Batch, dropout: Key[Array, ""]) -> Any:
        def of_part(index: Int[Array, ""]) -> Any:
            part = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:])[index], batch)
            return gradient(trained, part, jax.random.fold_in(dropout, index))

        def add(sums: Any, index: Int[Array, ""]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, of_part(index)), None

        shapes = jax.eval_shape(of_part, jnp.zeros((), jnp.int32))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        sums, _ = lax.scan(add, zero, jnp.arange(parts))
        return jax.tree.map(lambda leaf: leaf / parts, sums)

    return mean_of_parts


def make_train_chunk(
    step: TrainStep,
) -> Callable[[TrainState, RunInputs, Cohort, Frozen, Int[Array, ""], Int[Array, ""]], tuple[TrainState, Metrics]]:
    """Make the function that runs the steps `start` to `stop` of one run in one compiled loop.

    The bounds are traced, so that one program serves every chunk and training gives the same bits however it is split
    into chunks. They are the same for all runs, hence arguments rather than the state's own counter.

    Returns:
        `chunk(state, run, cohort, frozen, start, stop) -> (state, metrics)`. The metrics are `loss`, the mean over the
        steps, and `steps_alive`, the number of steps after which the run was alive.
    """

    def chunk(
        state: TrainState,
        run: RunInputs,
        cohort: Cohort,
        frozen: Frozen,
        start: Int[Array, ""],
        stop: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        def body(index: Any, carry: Carry) -> Carry:
            return _add(carry, step(carry[0], _inputs_at(run, index - start), cohort, frozen))

        return _finish(lax.fori_loop(start, stop, body, _begin(state)), stop - start)

    return chunk


Carry = tuple[TrainState, Float[Array, ""], Int[Array, ""]]
"""State, sum of losses, and how many steps the run was alive after."""


def _begin(state: TrainState) -> Carry:
    return state, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)


def _inputs_at(run: RunInputs, index: Int[Array, ""]) -> RunInputs:
    """A run's inputs at one step of a loop."""
    boxes = None if run.boxes is None else jax.tree.map(lambda leaf: leaf[index], run.boxes)
    return dataclasses.replace(run, boxes=boxes)


def _add(carry: Carry, stepped: tuple[TrainState, Metrics]) -> Carry:
    (_, loss_sum, steps_alive), (state, metrics) = carry, stepped
    return state, loss_sum + metrics["loss"], steps_alive + metrics["alive"]


def _finish(carry: Carry, steps: Int[Array, ""]) -> tuple[TrainState, Metrics]:
    state, loss_sum, steps_alive = carry
    return state, {"loss": loss_sum / steps, "steps_alive": steps_alive}


def make_encoded_loop(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    loss: Loss,
    sample: Sample,
    labels: Any,
    *,
    windows: averaging.Windows = (),
) -> StepLoop:
    """Make the loop of `make_train_chunk` for runs that share their whole frozen encoder and draw the same batches.

    Runs have the batch and its encoder features in common; the decoder, the loss and the update are each run's own.

    Args:
        model: The network.
        tx: As in `make_train_step`.
        loss: Loss of logits and integer labels.
        sample: Draws a batch.
        labels: Labels of each run's own parameters, which do not include the encoder.
        windows: As in `make_train_step`.

    Returns:
        The parts of the loop; their `shared` arguments are the cohort and the frozen parameters.
    """
    learn = _make_learn(model, tx, loss, labels, windows=windows, method="decode")

    def encoded(index: Int[Array, ""], carry: Carry, run: RunInputs, cohort: Cohort, frozen: Frozen) -> Batch:
        state = carry[0]
        batch = sample(step_key(state.key, state.step, "sample"), cohort, _inputs_at(run, index))
        network = model.clone(frozen=frozenset(trees.flatten(frozen)))
        features: Any = network.apply({"params": frozen}, batch.image, train=True, method="encode")
        return dataclasses.replace(batch, image=features)

    def own(carry: Carry, run: RunInputs, batch: Batch, cohort: Cohort, frozen: Frozen) -> Carry:
        return _add(carry, learn(carry[0], run, frozen, batch))

    return StepLoop(_begin, encoded, own, _finish)
