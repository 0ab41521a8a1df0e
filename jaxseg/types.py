"""Types that every module shares: the arrays and states that flow through compiled code, and the user's mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int, Key, Num

Params = Any
"""A nested dict of arrays: `encoder`, `decoder` and `head` sub-trees."""

Frozen = Any
"""Frozen parameters that all runs share: a sub-tree missing from every run's own params, or `{}`."""

Metrics = dict[str, jax.Array]


class UserError(ValueError):
    """A mistake in a config, in data or in a workdir: the command line prints it alone and exits with status 2.

    Its text says what is wrong, where, what was got, what is allowed and how to mend it.
    """


class RunLine(NamedTuple):
    """How one run is doing, for a terminal."""

    name: str
    loss: float
    dsc: float | None
    """Of its last validation."""
    alive: bool


class Progress(Protocol):
    """Told what is being done, how far it is, a short note (loss, rate), and while training how each run is doing."""

    def __call__(self, what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
        """`done` of `total` units of `what` are finished."""


class RunKey(NamedTuple):
    """One run: what is trained (arm, train size, fold) and its replicate (seed)."""

    arm: str
    train_cases: int
    fold: int
    seed: int

    def variant(self) -> str:
        """The path of the run's variant below its arm, as in the workdir layout."""
        return f"n{self.train_cases}_fold{self.fold}"


# ------------------------------------------------------------------------------------------ arrays in compiled code


@flax.struct.dataclass
class Batch:
    """Patches of one training step of one run."""

    image: Float[Array, "batch *patch channels"]
    label: Int[Array, "batch *patch"]


@flax.struct.dataclass
class Cohort:
    """All training cases of a task, end to end in one voxel buffer, on the device, shared by all runs.

    Cases differ in shape; a flat buffer with offsets holds them without padding. Voxels of case i are
    `image[offsets[i] : offsets[i] + prod(shapes[i])]` in C order.
    """

    image: Float[Array, "voxels channels"]
    """float16 where intensities are normalised; what samples it makes float32 of what it read."""
    label: Num[Array, " voxels"]
    offsets: Int[Array, " cases"]
    shapes: Int[Array, "cases ndim"]
    foreground: Int[Array, "cases labels points"]
    """Flat positions inside the case (C order) of voxels of each label, a seeded draw of at most `points`."""
    num_foreground: Int[Array, "cases labels"]
    """How many entries of `foreground` are in use; 0 where the case lacks the label."""
    spacing: Float[Array, "cases ndim"] | None = None
    """Voxel sizes in mm, for rotations and scalings; None counts as isotropic."""


@flax.struct.dataclass
class Boxes:
    """Voxels around the patches of some steps of one run, brought from a cohort that stays on the host."""

    image: Float[Array, "steps batch voxels channels"]
    """Each box flat, C order."""
    label: Num[Array, "steps batch voxels"]
    corner: Int[Array, "steps batch ndim"]
    """Case coordinates of a box's first voxel."""
    extent: Int[Array, "steps batch ndim"]
    """Of a box; all have the same."""


@flax.struct.dataclass
class RunInputs:
    """What distinguishes one run inside a compiled program, apart from its state."""

    cases: Int[Array, " max_cases"]
    """Cohort indices of the run's training cases; entries from `num_cases` on are padding."""
    num_cases: Int[Array, ""]
    rate: Float[Array, ""]
    """Peak learning rate."""
    boxes: Boxes | None = None
    """Where the cohort's voxels stay on the host: those of one compiled call. Inside a step, of this step alone."""


@flax.struct.dataclass
class Best:
    """The parameters of the best validation so far, where `train.keep_best` asks for them."""

    params: Params
    dsc: Float[Array, ""]
    """Validation DSC they had; -inf before the first validation."""
    step: Int[Array, ""]


@flax.struct.dataclass
class TrainState:
    """Everything of one run that training changes. Single-seed code sees no seed axis."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Key[Array, ""]
    """Root of the `order` stream: batches, augmentation, dropout. Folded with the step, never replaced."""
    alive: Bool[Array, ""]
    """Cleared by the first non-finite loss or gradient; a dead run is no longer updated."""
    best: Best | None = None
    average: Params | None = None
    """Mean over the last steps of the parameters that training moves (see `jaxseg.averaging`); None: none is made."""


class StepLoop(NamedTuple):
    """A training loop of one run in parts, so that what a step begins with can be computed once for many runs."""

    begin: Callable[..., Any]
    """`begin(state)`: what goes around the loop."""
    common: Callable[..., Any]
    """`common(index, carry, run, *shared)`: what a step of the loop begins with, the same for all such runs."""
    own: Callable[..., Any]
    """`own(carry, run, found, *shared)`: the rest of the step, from what `common` found; gives the carry."""
    finish: Callable[..., Any]
    """`finish(carry, steps)`: the loop's result."""


# ------------------------------------------------------------------------------------------------- data on the host
