"""Types that every module shares: arrays that flow through compiled code, and the typed settings of a study.

The settings mirror `configs/default.py` field by field; `jaxseg.config` fills them and checks them against each
other. Nothing below `config.py` sees a ConfigDict.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np
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


class Progress(Protocol):
    """Told what is being done, how far it is, and a short note (loss, rate)."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
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
class TrainState:
    """Everything of one run that training changes. Single-seed code sees no seed axis."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Key[Array, ""]
    """Root of the `order` stream: batches, augmentation, dropout. Folded with the step, never replaced."""
    alive: Bool[Array, ""]
    """Cleared by the first non-finite loss or gradient; a dead run is no longer updated."""


# ------------------------------------------------------------------------------------------------- data on the host


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """Where one case lies on disk, before anything of it was read."""

    name: str
    group: str
    """Patient, animal or examination; the case's own name where none is published."""
    images: tuple[str, ...]
    """One path a channel, or a single path to a 4-D file with all channels."""
    label: str | None


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """What is known of a prepared case without its voxels."""

    name: str
    group: str
    shape: tuple[int, ...]
    """On the training grid, canonical axes; 2-D tasks have two entries."""
    spacing_mm: tuple[float, ...]
    """Of the training grid."""
    own_shape: tuple[int, ...]
    """On the case's own grid, canonical axes, where metrics are computed."""
    own_spacing_mm: tuple[float, ...]
    voxels_per_label: tuple[int, ...]
    """On the case's own grid, background first."""
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class CaseArrays:
    """One prepared case in memory."""

    record: CaseRecord
    image: Float[np.ndarray, "*spatial channels"]
    label: Num[np.ndarray, " *spatial"]
    reference: Num[np.ndarray, " *own_spatial"]
    """The label map on the case's own grid (canonical axes); the same array as `label` when spacing is native."""


# --------------------------------------------------------------------------------------------------------- settings


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Augmentation inside the compiled step; a probability of 0 switches one off."""

    flip: tuple[int, ...]
    """Axes that may be flipped, each with probability 1/2."""
    gamma: float
    brightness: float
    noise: float
    """Probabilities per patch."""
    rotate90: tuple[int, ...] = ()
    """Axes among which patches are turned by right angles, each turn equally likely; they need equal patch sizes."""
    affine: float = 0.0
    """Probability of a small rotation (up to `rotation_deg`) and scaling (by up to `1 + scale`), in mm."""
    rotation_deg: float = 15.0
    scale: float = 0.15
    contrast: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0
    """Probabilities per patch."""


SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Canonical axes (right, anterior, superior) that slices lie across."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """A task: where its cases come from and how they become training data."""

    data: str
    labels: tuple[str, ...]
    """Names of the labels to segment, in this order; empty means all of dataset.json."""
    spacing_mm: str | tuple[float, ...]
    """`native`, `median`, or one number an axis, 0 where it stays as it is."""
    unit: str
    """`mm`, or `voxel` where the true spacing is unknown."""
    train_cases: tuple[int, ...]
    """Training set sizes, each a variant of every arm; 0 means all training cases."""
    val_cases: int
    test_cases: int
    """Of each fold; 0 with folds > 1 means a share of 1 / folds."""
    folds: int
    patch: tuple[int, ...]
    normalization: str
    """`zscore`, `zscore_nonzero`, `percentile` or `none`, per case."""
    foreground: float
    """Share of patches that contain a voxel of a label drawn uniformly."""
    augment: AugmentSettings
    bad_cases: str = "error"
    """`error`: a case that cannot be used stops the study (all are named); `skip`: it is left out and reported."""
    clip: tuple[float, ...] = ()
    """Lowest and highest intensity, in the files' unit: values beyond are cut before anything else; empty: none are."""
    image_interpolation: str = "cubic"
    """To the training grid: `cubic` or `linear`."""
    label_interpolation: str = "linear"
    """`linear` (of each label's indicator, the largest wins) or `nearest`."""
    as_slices: str = ""
    """`axial`, `coronal` or `sagittal`: a 2-D network segments volumes slice by slice; empty: images are 2-D."""

    @property
    def slice_axis(self) -> int | None:
        """The canonical axis across which volumes are cut into slices; None where they are not."""
        return SLICE_AXES.get(self.as_slices)

    @property
    def window(self) -> tuple[int, ...]:
        """The patch along the axes of a case: one voxel thick across slices."""
        axis = self.slice_axis
        return self.patch if axis is None else (*self.patch[:axis], 1, *self.patch[axis:])

    def window_axes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a patch as those of a case."""
        return tuple(axis if self.slice_axis is None or axis < self.slice_axis else axis + 1 for axis in axes)


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """A network, apart from what the task decides (channels, classes)."""

    name: str
    ndim: int
    widths: tuple[int, ...]
    norm: str
    """`none`, `instance`, `group` or `batch`."""
    strides: tuple[tuple[int, ...], ...]
    """Per level below the first, per axis; empty means 2 everywhere."""
    kernels: tuple[tuple[int, ...], ...]
    """Per level, per axis; empty means the network's own: 3, of `vnet` 5."""
    skips: bool
    """False: encoder features reach the decoder only through the bottom."""
    precision: str
    """Compute type, `float32` or `bfloat16` (from `train.precision`); parameters are float32."""
    groups: int = 0
    """Of the group norm; 0 with the others."""
    dropout: float = 0.0
    """Share of features zeroed after each nonlinearity in training; not beside frozen kernels."""
    encoder: str = "learned"
    """`pooled`: block means of the image take the place of the encoder's features; it has no weights."""
    remat: bool = False
    """From `train.remat`: the backward pass computes the inside of a level again, which saves memory."""


@dataclasses.dataclass(frozen=True)
class OptimSettings:
    """The optimizer of the trained parameters."""

    name: str
    """`adam`, `adamw` or `sgd`."""
    lr: float
    weight_decay: float
    momentum: float
    """Of sgd."""
    schedule: str
    """`constant`, `cosine` or `polynomial`, after the warm-up."""
    warmup_steps: int
    clip_norm: float
    """Global norm over the trained parameters; 0 switches clipping off."""


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The training loss."""

    name: str
    """`dice_ce`, `dice` or `ce`."""
    smooth: float
    """Of the Dice ratio's numerator and denominator."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long and in which batches a run trains."""

    steps: int
    batch: int
    log_every: int
    """Steps of one compiled call; the loss is averaged over them. Divides `eval_every` and `save_every`."""
    eval_every: int
    save_every: int


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """Training on the source task."""

    steps: int
    share: str
    """`per_seed` or `one`."""
    from_workdir: str
    """A finished study whose source networks are used instead of pretraining; empty to pretrain."""
    min_loaded: float
    """A transfer that loads a smaller share of the parameters than this is an error."""


@dataclasses.dataclass(frozen=True)
class ArmSettings:
    """One experimental condition: a start, what is trained, and the study's settings with the arm's overrides."""

    name: str
    kind: str
    """`network` or `prior`."""
    init: str
    """`random`, `pretrained`, `pretrained:PATH_REGEX` or `mean_var`."""
    freeze: str
    """`none`, `encoder`, `decoder`, `all_but_head` or `regex:PATH_REGEX`."""
    seed_offset: int
    model: ModelSettings
    optim: OptimSettings
    loss: LossSettings
    train: TrainSettings
    source: TaskSettings
    pretrain: PretrainSettings


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Prediction of whole cases."""

    overlap: float
    """Least share of a window shared with the next, along each axis."""
    val_overlap: float
    """The same for validation during training."""
    window_batch: int
    """Windows in one compiled call."""
    weights: str
    """Of a window's voxels where windows overlap: `gaussian` or `flat`."""
    flips: tuple[int, ...]
    """Axes mirrored at test time; validation during training mirrors none."""
    largest_component: tuple[str, ...]
    """Labels of which only the largest connected component is kept; `all` stands for every label."""
    regions: tuple[tuple[str, tuple[str, ...]], ...]
    """Unions of labels that are scored as well: (name, labels)."""
    hd_definition: str
    """Of HD95: `pooled` or `directed`."""
    surface_empty: str
    """Distance of a missed label: `diagonal`, `nan` or `inf`."""
    tolerance_mm: float
    """Of NSD, in the task's unit; 0: not computed."""
    save_predictions: bool
    """Keep the label maps of the test cases, as NIfTI on the grids of their images."""


@dataclasses.dataclass(frozen=True)
class AnalysisSettings:
    """What is computed from tables and checkpoints."""

    confidence: float
    target_fraction: float
    """Convergence target, as a share of scratch's final validation DSC."""


@dataclasses.dataclass(frozen=True)
class RuntimeSettings:
    """Where and how programs run; nothing here changes a result beyond rounding."""

    seed_map: str
    """`auto`, `vmap` or `loop`."""
    seeds_per_chunk: int | None
    """None: as many as fit in memory."""
    devices: int | None
    """None: all."""
    store_dir: str
    """Where prepared data is kept; empty means inside the workdir."""
    keep_checkpoints: int
    data_residence: str = "auto"
    """Of training voxels: `device`, `host` (sent as they are needed) or `auto`; batches are the same, bit for bit."""


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """The page."""

    examples: int
    """Test cases shown as overlays."""


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """A whole study, checked.

    Arms carry their own model, optim, loss, train, source and pretrain; those of the study are what source networks
    are trained with, so that an arm's own rate or length changes its training on the target alone.
    """

    name: str
    seeds: tuple[int, ...]
    base_seed: int
    vary: tuple[str, ...]
    source: TaskSettings
    target: TaskSettings
    model: ModelSettings
    optim: OptimSettings
    loss: LossSettings
    train: TrainSettings
    arms: tuple[ArmSettings, ...]
    evaluate: EvaluateSettings
    analysis: AnalysisSettings
    runtime: RuntimeSettings
    report: ReportSettings
