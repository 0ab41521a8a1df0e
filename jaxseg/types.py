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
    """Progress of one run, for a terminal."""

    name: str
    loss: float
    dsc: float | None
    """DSC of the run's last validation; None before the first."""
    alive: bool


class Progress(Protocol):
    """A function that is told what is being done, how far it is, a short note, and how each training run is doing."""

    def __call__(self, what: str, done: int, total: int, note: str = "", runs: Sequence[RunLine] = ()) -> None:
        """Report that `done` of `total` units of `what` are finished."""


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
class Restoration:
    """What a network is to restore from corrupted patches."""

    image: Float[Array, "batch *patch channels"]
    """The patches before they were corrupted."""
    weight: Float[Array, "batch *patch"]
    """1 at the voxels whose error counts, 0 elsewhere."""


@flax.struct.dataclass
class PartialLabel:
    """Label maps of cases that need not annotate every class; see `losses.merge_unannotated`."""

    label: Int[Array, "batch *patch"]
    """Classes."""
    annotated: Bool[Array, "batch classes"]
    """Whether the case that a patch is from annotates a class; it always annotates the background, class 0."""


@flax.struct.dataclass
class Batch:
    """Patches of one training step of one run."""

    image: Float[Array, "batch *patch channels"]
    label: Any
    """Classes `[batch, *patch]`; a `PartialLabel` where cases differ in what they annotate; or, where networks learn
    without labels, the `Restoration` that they are to make."""


@flax.struct.dataclass
class Cohort:
    """All training cases of a task, end to end in one voxel buffer, on the device, shared by all runs.

    Cases differ in shape; a flat buffer with offsets holds them without padding. Voxels of case i are
    `image[offsets[i] : offsets[i] + prod(shapes[i])]` in C order.
    """

    image: Float[Array, "voxels channels"]
    """Intensities; float16 where they are normalised, and cast to float32 when a patch is sampled."""
    label: Num[Array, " voxels"]
    offsets: Int[Array, " cases"]
    shapes: Int[Array, "cases ndim"]
    foreground: Int[Array, "cases labels points"]
    """Flat positions inside the case (C order) of voxels of each label or region, a seeded draw of at most `points`."""
    num_foreground: Int[Array, "cases labels"]
    """Number of entries of `foreground` in use; 0 if the case lacks the label."""
    spacing: Float[Array, "cases ndim"] | None = None
    """Voxel sizes in mm, for rotations and scalings; None counts as isotropic."""
    annotated: Bool[Array, "cases classes"] | None = None
    """Whether a case annotates a class, background first; None where every case annotates all."""


@flax.struct.dataclass
class Boxes:
    """Voxels around the patches of some steps of one run, brought from a cohort that stays on the host."""

    image: Float[Array, "steps batch voxels channels"]
    """The voxels of each box, flattened in C order."""
    label: Num[Array, "steps batch voxels"]
    corner: Int[Array, "steps batch ndim"]
    """Case coordinates of a box's first voxel."""
    extent: Int[Array, "steps batch ndim"]
    """Shape of the box; every box has the same."""


@flax.struct.dataclass
class RunInputs:
    """Inputs that distinguish one run inside a compiled program, apart from its state."""

    cases: Int[Array, " max_cases"]
    """Cohort indices of the run's training cases; entries from `num_cases` on are padding."""
    num_cases: Int[Array, ""]
    rate: Float[Array, ""]
    """Peak learning rate."""
    boxes: Boxes | None = None
    """Boxes for the patches of one compiled call (inside a step, of that step) if the cohort stays on the host."""


@flax.struct.dataclass
class Best:
    """The parameters of the best validation so far, where `train.keep_best` asks for them."""

    params: Params
    dsc: Float[Array, ""]
    """Validation DSC of these parameters; -inf before the first validation."""
    step: Int[Array, ""]


@flax.struct.dataclass
class TrainState:
    """All that training changes in one run. Single-seed code sees no seed axis."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Key[Array, ""]
    """Root of the `order` stream (batches, augmentation, dropout). The step is folded in; the key is never replaced."""
    alive: Bool[Array, ""]
    """Whether the run is still updated; cleared by the first non-finite loss or gradient."""
    best: Best | None = None
    average: Params | None = None
    """Mean of the trained parameters over the last steps (see `jaxseg.averaging`); None if there is no average."""


class StepLoop(NamedTuple):
    """A training loop of one run in parts, so that the start of each step can be computed once for many runs."""

    begin: Callable[..., Any]
    """`begin(state)` returns the initial carry of the loop."""
    common: Callable[..., Any]
    """`common(index, carry, run, *shared)` computes the start of a step, which is the same for all runs of the loop."""
    own: Callable[..., Any]
    """`own(carry, run, found, *shared)` does the rest of the step from the result of `common`; it returns the carry."""
    finish: Callable[..., Any]
    """`finish(carry, steps)` returns the result of the loop."""


# ------------------------------------------------------------------------------------------------- data on the host
