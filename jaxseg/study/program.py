"""What is compiled for a job, and how large one of its runs is."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import optim, trees
from jaxseg.models import make_model
from jaxseg.types import LossSettings, ModelSettings, OptimSettings, RunKey, TaskSettings, TrainSettings


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: everything that runs of one job have in common."""

    task: TaskSettings
    model: ModelSettings
    optim: OptimSettings
    """With the rate left out (0): rates are arrays over runs."""
    loss: LossSettings
    train: TrainSettings
    freeze: str
    channels: int
    classes: int
    fold: int | None = None
    """Whose training cases gave the intensity statistics; None where a case looks the same in every fold."""
    shared: RunKey | None = None
    """The source network whose weights are every run's frozen ones: kept once, not in each run's state."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Sizes of an arm's network."""

    parameters: int
    """Without running statistics of batch norms."""
    trainable: int
    state_bytes: int
    """Parameters and optimizer state of one run."""
    activation_bytes: int
    """Estimate of what one training step of one run holds for its backward pass."""
    shared_bytes: int = 0
    """Frozen parameters that all runs share."""


NO_NETWORK = Network(0, 0, 0, 0)
"""Of an arm that has none."""


def image_shape(program: Program) -> tuple[int, ...]:
    """Shape of one training batch of images."""
    return (program.train.batch, *program.task.patch, program.channels)


def abstract_params(program: Program) -> Any:
    """Shapes of the program's network, without computing anything."""
    return _abstract_params(program.model, program.classes, image_shape(program))


@functools.lru_cache(maxsize=64)  # tracing a network takes a second, and a plan asks for the same ones often
def _abstract_params(settings: ModelSettings, classes: int, shape: tuple[int, ...]) -> Any:
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    model = make_model(settings, classes=classes)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)["params"]


def param_labels(program: Program) -> Any:
    """The tree of `train` / `statistics` / `frozen` labels of the whole network."""
    return optim.freeze_labels(abstract_params(program), program.freeze)


def own_labels(program: Program) -> Any:
    """The labels of the parameters in each run's own state: all, or those not frozen where runs share the others."""
    labels = param_labels(program)
    return labels if program.shared is None else trees.partition(labels, labels, "frozen")[1]


def measure(program: Program) -> Network:
    """Counts parameters and estimates memory of one run."""
    params = abstract_params(program)
    labels = param_labels(program)
    trained, _ = trees.partition(params, labels, "train")
    statistics, _ = trees.partition(params, labels, "statistics")
    fixed, moving = trees.partition(params, labels, "frozen")
    own, shared = (params, {}) if program.shared is None else (moving, fixed)
    tx = optim.make_optimizer(program.optim, own_labels(program), program.train.steps)
    state = (own, jax.eval_shape(tx.init, own), own if program.train.keep_best else {})
    return Network(
        parameters=trees.count(params) - trees.count(statistics),
        trainable=trees.count(trained),
        state_bytes=_bytes(state),
        activation_bytes=_activation_bytes(program.model, program.classes, image_shape(program)),
        shared_bytes=_bytes(shared),
    )


@functools.lru_cache(maxsize=64)
def _activation_bytes(settings: ModelSettings, classes: int, shape: tuple[int, ...]) -> int:
    model = make_model(settings, classes=classes)

    def outputs(params: Any, image: Any) -> Any:
        return model.apply({"params": params}, image, capture_intermediates=True, mutable=["intermediates"])[1]

    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return 2 * _bytes(jax.eval_shape(outputs, _abstract_params(settings, classes, shape), image))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def runs_that_fit(network: Network, *, memory_bytes: int, devices: int, strategy: str) -> int:
    """How many runs of a network train together within the memory that images leave, at least one a device.

    Under `vmap` every run's activations are alive at once, under `loop` those of one run a device.
    """
    budget = int(0.8 * memory_bytes) - devices * network.shared_bytes
    if strategy == "vmap":
        fit = budget // (network.state_bytes + network.activation_bytes)
    else:
        fit = (budget - devices * network.activation_bytes) // (2 * network.state_bytes)
    return max(int(fit), devices)
