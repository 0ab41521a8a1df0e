"""A tiny 2-D network, a synthetic cohort and the pieces of a training that tests of the core share.

Settings are plain values; what is compiled from them is kept for the whole test session.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import data, logs, losses, optim, seeds, train, trees
from jaxseg.data.formats import synthetic
from jaxseg.models import make_model
from jaxseg.settings import AugmentSettings, LossSettings, ModelSettings, OptimSettings, TaskSettings
from jaxseg.streams import stream_key
from jaxseg.types import Cohort, RunInputs, TrainState

MODEL = ModelSettings(name="unet", ndim=2, widths=(2, 3), norm="instance", strides=(), kernels=(), skips=True)
OPTIM = OptimSettings(
    name="adam", lr=1e-2, weight_decay=0.0, momentum=0.9, schedule="constant", warmup_steps=0, clip_norm=0.0
)
LOSS = LossSettings(name="dice_ce", smooth=1.0)
TASK = TaskSettings(
    data="synthetic:blobs?shape=12x10",
    labels=(),
    spacing_mm="native",
    unit="mm",
    train_cases=(0,),
    val_cases=1,
    test_cases=1,
    folds=1,
    patch=(8, 8),
    normalization="zscore",
    foreground=0.5,
    augment=AugmentSettings(flip=(0,), gamma=0.0, brightness=0.0, noise=0.0),
)
CLASSES = 3
STEPS = 100
"""Length of the schedules."""


def abstract_params(model: ModelSettings = MODEL, *, classes: int = CLASSES, channels: int = 1) -> Any:
    """Shapes of a network's parameters."""
    image = jax.ShapeDtypeStruct((1, *(8,) * model.ndim, channels), jnp.float32)
    return jax.eval_shape(make_model(model, classes=classes).init, jax.random.key(0), image)["params"]


def random_params(model: ModelSettings = MODEL, *, classes: int = CLASSES, channels: int = 1, seed: int = 0) -> Any:
    """Parameters of a network, every leaf with numbers of its own (no zeros, no ones; variances are positive)."""
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf: Any) -> np.ndarray:
        values = rng.normal(scale=0.5, size=leaf.shape).astype(np.float32)
        return np.exp(values) if path.endswith("variance") else values

    return trees.map_with_path(draw, abstract_params(model, classes=classes, channels=channels))


@functools.cache
def make_cohort(*, ndim: int = 2, cases: int = 4) -> Cohort:
    """Synthetic cases of two shapes, with two labels."""
    shapes = [(12, 10), (9, 14)] if ndim == 2 else [(9, 8, 10), (8, 8, 8)]
    made = []
    for index in range(cases):
        text = "x".join(map(str, shapes[index % 2]))
        image, label = synthetic.make_case(synthetic.parse(f"blobs?shape={text}"), index)
        made.append(((image - image.mean()) / image.std(), label))
    sizes = [label.size for _, label in made]
    positions = [[np.flatnonzero(label == value) for value in (1, 2)] for _, label in made]
    counts = np.array([[len(found) for found in row] for row in positions], np.int32)
    foreground = np.zeros((cases, 2, counts.max()), np.int32)
    for case, row in enumerate(positions):
        for value, found in enumerate(row):
            foreground[case, value, : len(found)] = found
    return Cohort(
        image=jnp.asarray(np.concatenate([image.reshape(-1, 1) for image, _ in made]), jnp.float32),
        label=jnp.asarray(np.concatenate([label.ravel() for _, label in made]), jnp.uint8),
        offsets=jnp.asarray(np.cumsum([0, *sizes[:-1]]), jnp.int32),
        shapes=jnp.asarray([label.shape for _, label in made], jnp.int32),
        foreground=jnp.asarray(foreground),
        num_foreground=jnp.asarray(counts),
    )


@dataclasses.dataclass(frozen=True)
class Training:
    """One kind of training: what differs between its runs is in their states and inputs."""

    model: ModelSettings = MODEL
    optim: OptimSettings = OPTIM
    task: TaskSettings = TASK

    @property
    def cohort(self) -> Cohort:
        """What runs train on."""
        return make_cohort(ndim=self.model.ndim)

    @functools.cached_property
    def tx(self) -> Any:
        """The optimizer, with nothing frozen."""
        return optim.make_optimizer(self.optim, labels_of(self.model), STEPS)

    @functools.cached_property
    def sample(self) -> train.Sample:
        """Draws a batch."""
        return data.make_sample(self.task, batch=2)

    @functools.cached_property
    def step(self) -> train.TrainStep:
        """One step of one run."""
        network = make_model(self.model, classes=CLASSES)
        return train.make_train_step(network, self.tx, losses.make_loss(LOSS), self.sample, labels_of(self.model))

    def states(self, ids: Sequence[int]) -> TrainState:
        """Starts of several runs, stacked; a run's is a function of its id."""
        return trees.stack([make_state(self.model, self.tx, seed) for seed in ids])

    def lower(self, plan: seeds.SeedPlan, states: TrainState, runs: RunInputs, start: int, stop: int) -> Any:
        """The compiled loop's function and its arguments, placed."""
        common = seeds.replicate(self.cohort, plan), {}, np.int32(start), np.int32(stop)
        return _chunk(self, plan), (seeds.put(states, plan), seeds.put(runs, plan), *common)

    def run(self, plan: seeds.SeedPlan, states: TrainState, runs: RunInputs, start: int, stop: int) -> Any:
        """States (keys as raw words) and metrics of all runs after some steps, on the host."""
        chunk, args = self.lower(plan, states, runs, start, stop)
        return seeds.fetch(chunk(*args), trees.length(states.step))


@functools.cache
def _chunk(training: Training, plan: seeds.SeedPlan) -> Any:
    return seeds.map_seeds(train.make_train_chunk(training.step), plan=plan, shared=(2, 3, 4, 5))


@functools.cache
def labels_of(model: ModelSettings = MODEL, freeze: str = "none") -> Any:
    """The tree of `train` / `frozen`."""
    return optim.freeze_labels(abstract_params(model), freeze)


def make_state(model: ModelSettings, tx: Any, seed: int) -> TrainState:
    """The start of one run, made without compiling anything."""
    params = random_params(model, seed=seed)
    # Moments and counters of all optimizers begin at 0.
    moments = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), jax.eval_shape(tx.init, params))
    return TrainState(
        step=jnp.int32(0),
        params=jax.tree.map(jnp.asarray, params),
        opt_state=moments,
        key=stream_key(np.uint32(seed), "order"),
        alive=jnp.asarray(True),
    )


def plan_of(strategy: str = "loop", devices: int = 1) -> seeds.SeedPlan:
    """A plan over the first devices."""
    return seeds.SeedPlan(tuple(jax.devices()[:devices]), strategy)


def run_inputs(count: int, *, cases: Sequence[int] = (0, 1, 2, 3), rate: float = OPTIM.lr) -> RunInputs:
    """Inputs of runs that train on the same cases."""
    one = RunInputs(
        cases=jnp.asarray(cases, jnp.int32), num_cases=jnp.int32(len(cases)), rate=jnp.asarray(rate, jnp.float32)
    )
    return jax.tree.map(jnp.asarray, trees.stack([one] * count))


def bits(tree: Any) -> dict[str, bytes]:
    """Every leaf's bytes by path, for comparisons that tell -0 from 0 and one NaN from another."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in trees.flatten(tree).items()}


def metric_lines(directory):
    """Rows of metrics.jsonl, which may be growing: a line that is not yet whole is left out."""
    path = directory / logs.METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
