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

from jaxseg import trees
from jaxseg.models import norms
from jaxseg.streams import fold_in_name, step_key
from jaxseg.types import Batch, Cohort, Frozen, Metrics, Params, RunInputs, TrainState

Sample = Callable[[Key[Array, ""], Cohort, RunInputs], Batch]
Loss = Callable[[Float[Array, "batch *spatial classes"], Int[Array, "batch *spatial"]], Float[Array, ""]]
TrainStep = Callable[[TrainState, RunInputs, Cohort, Frozen], tuple[TrainState, Metrics]]


def init_params(key: Key[Array, ""], model: nn.Module, image: Float[Array, "batch *spatial channels"]) -> Params:
    """Random parameters of a network for images of this shape."""
    return model.init(key, image)["params"]


def init_state(
    init_key: Key[Array, ""],
    order_key: Key[Array, ""],
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    image: Float[Array, "batch *spatial channels"],
    pretrained: Callable[[Params, Key[Array, ""]], Params] | None = None,
) -> TrainState:
    """The state before the first step: model init, then loaded weights, then optimizer init, in this order.

    Args:
        init_key: Stream of the initial weights.
        order_key: Stream of batches, augmentation and dropout.
        model: The network.
        tx: The optimizer; its moments start from the loaded weights' structure.
        image: An array of the shape the network will see.
        pretrained: Turns random parameters into the start (see `transfer.make_start`); None keeps them.
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
    )


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformationExtraArgs, loss: Loss, sample: Sample, labels: Any
) -> TrainStep:
    """One training step of one run.

    The gradient is taken with respect to the trained leaves alone, so that the backward pass of frozen parts is never
    built; beside frozen parameters there is no dropout. Running statistics of batch norms follow the batch unless they
    are frozen. A non-finite loss or gradient clears `alive`; from then on the run's parameters and moments stay as they
    were before that step, while its step counter goes on with the others'.

    Args:
        model: The network.
        tx: From `optim.make_optimizer`, for the same labels.
        loss: Of logits and integer labels.
        sample: Draws a batch; see `data.make_sample`.
        labels: Tree of `train` / `statistics` / `frozen` with the structure of a state's params; see
            `optim.freeze_labels`.

    Returns:
        `step(state, run, cohort, frozen) -> (state, metrics)` where `frozen` holds parameters that all runs share,
        or `{}`; metrics are scalars `loss` and `alive`.
    """
    frozen_paths = [path for path, label in trees.flatten(labels).items() if label == "frozen"]

    def step(state: TrainState, run: RunInputs, cohort: Cohort, frozen: Frozen) -> tuple[TrainState, Metrics]:
        batch = sample(step_key(state.key, state.step, "sample"), cohort, run)
        rngs = {"dropout": step_key(state.key, state.step, "dropout")}
        trained, fixed = trees.partition(state.params, labels, "train")
        network = model.clone(frozen=frozenset((*frozen_paths, *trees.flatten(frozen))))

        def objective(trained: Params) -> tuple[Float[Array, ""], Params]:
            variables = {"params": trees.merge(trained, fixed, frozen)}
            logits, seen = network.apply(variables, batch.image, train=True, rngs=rngs, mutable=[norms.STATISTICS])
            return loss(logits, batch.label), seen.get(norms.STATISTICS, {})

        (value, statistics), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        # A plain sum of squares is finite if and only if every gradient is (up to overflow, which is as bad).
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads, squared=True))
        alive = state.alive & finite

        all_grads = trees.merge(grads, jax.tree.map(jnp.zeros_like, fixed))
        updates, opt_state = tx.update(all_grads, state.opt_state, state.params, rate=run.rate)
        updates, _ = trees.partition(updates, labels, "train")
        keep = lambda new, old: jnp.where(alive, new, old)  # noqa: E731
        trained = jax.tree.map(keep, optax.apply_updates(trained, updates), trained)
        fixed = jax.tree.map(keep, trees.replace(fixed, statistics), fixed)
        new_state = TrainState(
            step=state.step + 1,
            params=trees.merge(trained, fixed),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            key=state.key,
            alive=alive,
        )
        return new_state, {"loss": value, "alive": alive}

    return step


def make_train_chunk(
    step: TrainStep,
) -> Callable[[TrainState, RunInputs, Cohort, Frozen, Int[Array, ""], Int[Array, ""]], tuple[TrainState, Metrics]]:
    """Steps `start` to `stop` of one run in one compiled loop.

    The bounds are traced, so that one program serves every chunk and a training gives the same bits however it is
    split into chunks. They are the same for all runs, hence arguments rather than the state's own counter.

    Returns:
        `chunk(state, run, cohort, frozen, start, stop) -> (state, metrics)`; metrics are the mean `loss` over the
        steps and `steps_alive`, how many of them the run was alive after.
    """

    def chunk(
        state: TrainState,
        run: RunInputs,
        cohort: Cohort,
        frozen: Frozen,
        start: Int[Array, ""],
        stop: Int[Array, ""],
    ) -> tuple[TrainState, Metrics]:
        def body(index: Any, carry: tuple[TrainState, jax.Array, jax.Array]) -> tuple[TrainState, jax.Array, jax.Array]:
            state, loss_sum, steps_alive = carry
            boxes = None if run.boxes is None else jax.tree.map(lambda leaf: leaf[index - start], run.boxes)
            state, metrics = step(state, dataclasses.replace(run, boxes=boxes), cohort, frozen)
            return state, loss_sum + metrics["loss"], steps_alive + metrics["alive"]

        zero = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        state, loss_sum, steps_alive = lax.fori_loop(start, stop, body, (state, *zero))
        return state, {"loss": loss_sum / (stop - start), "steps_alive": steps_alive}

    return chunk
