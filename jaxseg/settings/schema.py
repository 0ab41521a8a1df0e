"""The typed settings of a study: `configs/default.py` field by field.

`jaxseg.settings.parse` fills them and `jaxseg.settings.rules` checks them against each other.
"""

from __future__ import annotations

import dataclasses


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
    shuffle_labels: bool = False
    """Training images get another case's label map: of a source task, a control in which nothing fits together."""
    bad_cases: str = "error"
    """`error`: a case that cannot be used stops the study (all are named); `skip`: it is left out and reported."""
    clip: tuple[float, ...] = ()
    """Lowest and highest intensity, in the files' unit: values beyond are cut before anything else; empty: none are."""
    noise: float = 0.0
    """Gaussian noise added to every image, in the image's own standard deviations: a target made harder on purpose."""
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
    """Of convolutions, from `train.precision`: `float32` in full, `tf32` as fast as the device offers it for float32
    (GPUs round what they multiply to TF32), `bfloat16` for features too. Parameters are float32."""
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
    """`constant`, `cosine`, `polynomial` or `plateau` (by the run's own validation), after the warm-up."""
    warmup_steps: int
    clip_norm: float
    """Global norm over the trained parameters; 0 switches clipping off."""
    decay: str = "kernel$"
    """Pattern of the paths that decay."""
    plateau_ratio: float = 0.995
    plateau_factor: float = 0.9
    """`plateau` multiplies a run's rate by the factor when validation DSC falls below the ratio times the last."""
    lr_grid: tuple[float, ...] = ()
    """Rates among which each variant of an arm takes the best on validation data, before it trains; empty: `lr`."""
    lr_seeds: tuple[int, ...] = ()
    """Seeds of these trials, used for nothing else."""


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The training loss."""

    name: str
    """`dice_ce`, `dice`, `ce`, `focal` or `dice_focal`."""
    smooth: float
    """Of the Dice ratio's numerator and denominator."""
    dice_over: str = "case"
    """`case`: one Dice ratio a patch, averaged; `batch`: one ratio over all patches of a batch."""
    focal_gamma: float = 2.0
    """Exponent of focal loss; 0 makes it cross-entropy."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long and in which batches a run trains."""

    steps: int
    batch: int
    log_every: int
    """Steps of one compiled call; the loss is averaged over them. Divides `eval_every` and `save_every`."""
    eval_every: int
    save_every: int
    accumulate: int = 1
    """Batches whose gradients are averaged into one step."""
    snapshots: tuple[int, ...] = ()
    """Steps whose checkpoints are kept for good, beside step 0 and the last ones."""
    keep_best: bool = False
    """Keeps each run's parameters of the best validation beside the last ones."""


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """Training on the source task."""

    steps: int
    share: str
    """`per_seed` or `one`."""
    from_workdir: str
    """Networks used as sources instead of pretraining: a study's workdir, or a folder of its checkpoints, or one
    checkpoint in it; empty to pretrain."""
    min_loaded: float
    """A transfer that loads a smaller share of the parameters than this is an error."""
    from_arm: str = ""
    """The arm whose networks are taken from `from_workdir`; empty for its source networks."""
    eval_every: int = 0
    """Steps between validations of source networks; 0: as in `TrainSettings`."""
    adapt_channels: bool = False
    """Kernels that read the image and differ in its channels get the source kernel's mean, not a new start."""


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
    train_cases: tuple[int, ...]
    """Those of the target's training set sizes that it is trained with."""
    vary: tuple[str, ...]
    """Random streams that differ between seeds; the others are fed by the base seed."""
    cross: tuple[str, ...]
    """Streams whose ids are crossed, every id of one with every id of the others; empty for one run a seed."""
    cross_ids: tuple[int, ...]
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
    cases: int
    """Test cases that networks are compared on, and validation cases that altered ones are judged on; 0: networks are
    not looked at."""
    windows: int
    """Patches of each case."""
    positions: int
    """Voxels at which features are read, over all patches."""
    barrier_pairs: int
    """Pairs of runs of an arm that are interpolated, at most about so many."""


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
