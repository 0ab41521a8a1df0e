"""Describes what is compiled for a job, and how large one of its runs is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseg import averaging, losses, optim, trees
from jaxseg.analysis import activations
from jaxseg.models import Network, conv, make_model
from jaxseg.regions import Regions
from jaxseg.settings import Compute, LossSettings, ModelSettings, OptimSettings, TaskSettings, TrainSettings
from jaxseg.settings.schema import Objective
from jaxseg.study.plan.layout import array_bytes, tree_bytes
from jaxseg.types import Batch, Restoration, RunKey


@dataclasses.dataclass(frozen=True)
class Program:
    """The static description of what is compiled: everything that the runs of one job share."""

    task: TaskSettings
    model: ModelSettings
    compute: Compute
    optim: OptimSettings
    """The optimizer with the default learning rate, since rates are arrays over runs."""
    loss: LossSettings
    train: TrainSettings
    freeze: str
    channels: int
    classes: int
    """Output channels: the classes, background included, or the regions; the image's channels where the network
    restores images."""
    objective: Objective = "labels"
    fold: int | None = None
    """The fold whose training cases gave the intensity statistics; None if a case looks the same in every fold."""
    shared: RunKey | None = None
    """The source network that provides every run's frozen weights, which are kept once instead of in each state."""
    form: str = "auto"
    """Form of the network's convolutions; `auto` follows the backend of the process (see `jaxseg.models.conv`)."""
    regions: Regions | None = None
    """The regions that the network finds; None if it finds classes that exclude each other, or restores images."""

    def for_platform(self, platform: str) -> Program:
        """Returns the same program in the form that it has on a platform, whatever the backend of this process."""
        return dataclasses.replace(self, form=conv.form_for(platform))

    @property
    def network(self) -> Network:
        """The network that is trained."""
        kind = {"restores": self.restores, "overlapping": self.regions is not None}
        made = make_model(self.model, self.compute, classes=self.classes, **kind)
        return made if self.form == "auto" else made.clone(form=self.form)

    @property
    def map_classes(self) -> int:
        """Classes of the label maps that the network is trained and judged on, background included."""
        return self.classes if self.regions is None else self.regions.classes + 1

    @property
    def restores(self) -> bool:
        """Whether the network restores images instead of segmenting them."""
        return self.objective != "labels"


class TaskSize(NamedTuple):
    """What a task decides about its networks."""

    channels: int
    """Channels of an image."""
    outputs: int
    """Classes, background included, or regions."""
    regions: Regions | None = None


@dataclasses.dataclass(frozen=True)
class NetworkSize:
    """The sizes of an arm's network."""

    parameters: int
    """Number of parameters, without the running statistics of batch norms."""
    trainable: int
    state_bytes: int
    """Bytes of the parameters and optimizer state of one run."""
    activation_bytes: int
    """The most bytes that one training step of one run holds beside its state (see `_activation_bytes`)."""
    shared_bytes: int = 0
    """Bytes of the frozen parameters that all runs share."""


NO_NETWORK = NetworkSize(0, 0, 0, 0)
"""The size of an arm that has no network."""


_OF_SAMPLES = ("patch", "as_slices", "foreground", "augment")
"""What of a task its batches depend on, beside the images."""
_ANY_SOURCE = RunKey("", 0, 0, 0)


def training_part(program: Program) -> Program:
    """Returns the program with defaults in the place of everything that its compiled training does not depend on.

    That is where the images come from, and when the host validates and saves. Programs that agree in the rest are
    traced and compiled once: those of source networks and of arms, if they are trained alike.
    """
    own = {name: getattr(program.task, name) for name in _OF_SAMPLES}
    on_host = {name: getattr(TrainSettings, name) for name in ("eval_every", "save_every", "snapshots")}
    train = dataclasses.replace(program.train, **on_host)
    # The source network whose weights runs share is an array: which it is makes no other program.
    shared = None if program.shared is None else _ANY_SOURCE
    return dataclasses.replace(program, task=TaskSettings(**own), train=train, fold=None, shared=shared)


def image_shape(program: Program) -> tuple[int, ...]:
    """Returns the shape of one training batch of images."""
    return (program.train.batch, *program.task.patch, program.channels)


def abstract_batch(program: Program) -> Batch:
    """Returns the shapes of one training batch."""
    shape = image_shape(program)

    def abstract(shape: tuple[int, ...], kind: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)

    image = abstract(shape, jnp.float32)
    if program.restores:
        return Batch(image, Restoration(image, abstract(shape[:-1], jnp.float32)))
    return Batch(image, abstract(shape[:-1], jnp.int32))


def program_loss(program: Program) -> Callable[[Any, Any], Any]:
    """Returns the loss of the network's output and of what a batch holds as `label`."""
    return losses.restoration_loss if program.restores else losses.make_loss(program.loss, program.regions)


def abstract_params(program: Program) -> Any:
    """Returns the parameter shapes of the program's network, without computing anything."""
    # Every form has the same parameters.
    return _abstract_params(dataclasses.replace(program, form="auto").network, image_shape(program))


def kernels_of_images(program: Program) -> frozenset[str]:
    """Returns the paths of the kernels that read the image, whose shapes another number of channels would change."""
    one_more = dataclasses.replace(program, channels=program.channels + 1)
    own, other = (trees.flatten(abstract_params(of)) for of in (program, one_more))
    return frozenset(path for path, leaf in own.items() if leaf.shape != other[path].shape)


@functools.lru_cache(maxsize=64)  # tracing a network takes a second, and a plan asks for the same ones often
def _abstract_params(model: Network, shape: tuple[int, ...]) -> Any:
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)), image)["params"]


def feature_grids(program: Program) -> Mapping[str, tuple[int, ...]]:
    """Returns the spatial shape of every recorded layer over one window, without computing anything."""
    return _feature_grids(dataclasses.replace(program, form="auto").network, image_shape(program))


@functools.lru_cache(maxsize=64)
def _feature_grids(model: Network, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    return activations.layer_grids(model, _abstract_params(model, shape), shape[1:-1], shape[-1])


def param_labels(program: Program) -> Any:
    """Returns the tree of `train` / `statistics` / `frozen` labels of the whole network."""
    return optim.freeze_labels(abstract_params(program), program.freeze)


def own_labels(program: Program) -> Any:
    """Returns the labels of the parameters in each run's own state: all, or the unfrozen if runs share the others."""
    labels = param_labels(program)
    return labels if program.shared is None else trees.partition(labels, labels, "frozen")[1]


def measure(program: Program, platform: str = "cpu") -> NetworkSize:
    """Counts the parameters and estimates the memory of one run on a platform, in the form that it has there."""
    params = abstract_params(program)
    labels = param_labels(program)
    trained, _ = trees.partition(params, labels, "train")
    statistics, _ = trees.partition(params, labels, "statistics")
    fixed, moving = trees.partition(params, labels, "frozen")
    own, shared = (params, {}) if program.shared is None else (moving, fixed)
    tx = optim.make_optimizer(program.optim, own_labels(program), program.train.steps)
    state = (
        *(own, jax.eval_shape(tx.init, own)),
        own if program.train.keep_best else {},
        averaging.start_average(own, own_labels(program)) if program.train.average else {},
    )
    return NetworkSize(
        parameters=trees.count(params) - trees.count(statistics),
        trainable=trees.count(trained),
        state_bytes=tree_bytes(jax.tree.map(_with_run_axis, state), platform),
        activation_bytes=_activation_bytes(
            dataclasses.replace(training_part(program).for_platform(platform), optim=OptimSettings(), shared=None),
            platform,
        ),
        shared_bytes=tree_bytes(shared, platform),
    )


def _with_run_axis(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of an array in the states of several runs, for one of them."""
    return jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)


@functools.lru_cache(maxsize=64)
def _activation_bytes(program: Program, platform: str) -> int:
    """What the forward pass keeps for the backward pass, and beside it the operand and the result of one operation.

    The largest array of the traced gradient stands for these two. Against the memory of compiled programs this is
    within a fifth (docs/performance.md); what XLA fuses it does not know.
    """
    trained, fixed = trees.partition(abstract_params(program), param_labels(program), "train")
    batch, objective = abstract_batch(program), make_objective(program)

    def backward(trained: Any, fixed: Any, batch: Batch) -> Any:
        return jax.vjp(lambda trained: objective(trained, fixed, batch), trained)[1]

    kept = tree_bytes(jax.eval_shape(backward, trained, fixed, batch), platform)
    gradient = jax.make_jaxpr(jax.grad(objective))(trained, fixed, batch)
    return kept + 2 * largest_bytes(gradient.jaxpr, platform)


def make_objective(program: Program) -> Any:
    """Makes the loss of a program's network on one batch, a function of trained and frozen parameters and the batch."""
    model, measure_loss = program.network, program_loss(program)

    def objective(trained: Any, fixed: Any, batch: Batch) -> Any:
        output: Any = model.apply({"params": trees.merge(trained, fixed)}, batch.image, train=False)
        return measure_loss(output, batch.label)

    return objective


def inner_jaxprs(equation: Any) -> list[Any]:
    """Returns the jaxprs that an equation calls."""
    parameters = jax.tree.leaves(equation.params, is_leaf=_is_jaxpr)
    return [getattr(value, "jaxpr", value) for value in parameters if _is_jaxpr(value)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def largest_bytes(jaxpr: Any, platform: str) -> int:
    """Returns the bytes of the largest array that an operation in a jaxpr gives, on a platform."""
    largest = 0
    for equation in jaxpr.eqns:
        inner = inner_jaxprs(equation)
        given = [] if inner else [variable.aval for variable in equation.outvars]
        sizes = [array_bytes(aval.shape, getattr(aval.dtype, "itemsize", 0), platform) for aval in given]
        largest = max([largest, *sizes, *(largest_bytes(part, platform) for part in inner)])
    return largest


STATES = {"vmap": 2, "loop": 3}
"""How often a strategy has the states of all runs in memory: before and after a step, and under `loop`, which is there
for devices that compute in the memory of the host, also as the copy that a checkpoint is written from."""


def runs_that_fit(network: NetworkSize, *, memory_bytes: int, devices: int, strategy: str) -> int:
    """Returns how many runs train together within the memory that images leave, at least one per device.

    States are held as often as `STATES` says. Under `vmap` every run's activations are alive at once, under `loop` only
    those of one run per device.
    """
    budget = int(0.8 * memory_bytes) - devices * network.shared_bytes
    if strategy == "vmap":
        fit = budget // ((STATES[strategy] + 1) * network.state_bytes + network.activation_bytes)
    else:
        running = devices * (network.activation_bytes + network.state_bytes)
        fit = (budget - running) // (STATES[strategy] * network.state_bytes)
    return max(int(fit), devices)
