"""Every setting of a study, declared once: its type, what it may be, its default, and what it does.

Checks, the comments of `configs/default.py` and the reference of fields (docs/configs.md) follow from it.
"""

import dataclasses
import math
from typing import Annotated, Literal

from jaxseg.settings.kinds import (
    Allowed,
    Amount,
    Auto,
    Count,
    Limits,
    Names,
    Number,
    Positive,
    Probability,
    Rates,
    Regions,
    Seed,
    Seeds,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareBetween,
    Sizes,
    Spacing,
    Streams,
    Written,
    name_or,
    read_streams,
)

Unit = Literal["mm", "voxel"]
Normalization = Literal["zscore", "zscore_nonzero", "percentile", "none", "dataset", "auto"]
ModelName = Literal["unet", "multiscale_fcn", "vnet"]
Norm = Literal["none", "instance", "group", "batch"]
Precision = Literal["float32", "tf32", "bfloat16"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "polynomial", "plateau"]
Loss = Literal["dice_ce", "dice", "ce", "focal", "dice_focal"]
Init = Literal["random", "pretrained", "mean_var"]
INITS = name_or(Init, "pretrained:", "PATH_REGEX")
Freeze = Literal["none", "encoder", "decoder", "all_but_head"]
FREEZES = name_or(Freeze, "regex:", "PATH_REGEX")
HdDefinition = Literal["pooled", "directed"]
SurfaceEmpty = Literal["diagonal", "nan", "inf"]
Strategy = Literal["vmap", "loop"]

SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Canonical axes (right, anterior, superior) that slices lie across."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Augmentation of patches inside the compiled step; a probability of 0 switches one off."""

    flip: tuple[int, ...] = ()
    """Axes that may be flipped, each with probability 1/2."""
    rotate90: tuple[int, ...] = ()
    """Axes among which patches are turned by right angles; they need equal patch sizes."""
    affine: Probability = 0.0
    """Probability of a small rotation and scaling per patch."""
    rotation_deg: Annotated[float, Allowed("degrees from 0 to 180", lambda angle: 0 <= angle <= 180)] = 15.0
    """Largest rotation of `affine`."""
    scale: Amount = 0.15
    """Largest relative scaling of `affine`."""
    contrast: Probability = 0.0
    """Probability of a random contrast per patch."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur per patch."""
    low_resolution: Probability = 0.0
    """Probability of a loss of resolution per patch."""
    gamma: Probability = 0.0
    """Probability of a random gamma per patch."""
    brightness: Probability = 0.0
    """Probability of a random shift and scale of intensities per patch."""
    noise: Probability = 0.0
    """Probability of added Gaussian noise per patch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task: where its cases come from and how they become training data."""

    data: Annotated[str, Allowed("a folder, or synthetic:NAME", bool)] = "synthetic:blobs"
    """A folder in Medical Segmentation Decathlon or nnU-Net layout, or synthetic:NAME[?n=..&shape=..]; of a source also
    `target`, the cases of the target that its runs do not see."""
    labels: tuple[str, ...] = ()
    """Names of the labels to segment, in this order; () takes all of dataset.json."""
    spacing_mm: Spacing = "native"
    """Voxel size of training: native, median, or a number per axis such as '1.0, 1.0, 3.0' (0 keeps it as it is)."""
    as_slices: str = ""
    """A 2-D network segments volumes slice by slice: axial, coronal or sagittal; empty where images are 2-D."""
    unit: Unit = "mm"
    """Unit of every distance; voxel where the true spacing is unknown."""
    train_cases: Sizes = (0,)
    """Training set sizes, each a variant of every arm; 0 takes all training cases."""
    val_cases: Number = 8
    """Cases for learning curves, taken from the training side of each fold."""
    test_cases: Annotated[int, Allowed("a number from 1, or 0 for a share of the cases", lambda n: n >= 0)] = 0
    """Cases held out in each fold; 0 holds out a share of 1 / folds (a fifth where folds is 1)."""
    folds: Number = 1
    """1 makes a single split; with k folds every case is tested once."""
    patch: tuple[int, ...] = (32, 32, 32)
    """Voxels of a patch per axis."""
    clip: Limits = ()
    """Intensities are first cut to this range, such as a CT window '(-160.0, 240.0)'; () cuts none."""
    noise: Amount = 0.0
    """Gaussian noise added to every image, in its own standard deviations: a task made harder on purpose."""
    normalization: Normalization = "zscore"
    """Intensities per case; dataset takes statistics of the training cases, auto decides by modality."""
    bad_cases: Literal["error", "skip"] = "error"
    """A case that cannot be used stops the study, or is left out and reported."""
    shuffle_labels: bool = False
    """A source trains on other cases' label maps: a control in which nothing fits together."""
    foreground: Share = 0.5
    """Share of patches that contain a voxel of a label drawn uniformly."""
    augment: AugmentSettings = AugmentSettings()

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A network, apart from what the task decides (channels, classes)."""

    name: ModelName = "unet"
    """Network; docs/networks.md describes them."""
    ndim: Literal[2, 3] = 3
    """Spatial axes."""
    widths: Annotated[tuple[int, ...], Allowed("positive widths", lambda w: bool(w) and min(w) >= 1)] = (16, 32, 64)
    """Channels per level, finest first."""
    norm: Norm = "instance"
    """Normalization of features."""
    groups: int = 0
    """Groups of the group norm; 0 with the others."""
    dropout: ShareBelowOne = 0.0
    """Share of features zeroed after each nonlinearity in training; not beside frozen kernels."""
    encoder: Literal["learned", "pooled"] = "learned"
    """pooled takes block means of the image in place of the encoder's features; it has no weights."""
    strides: tuple[tuple[int, ...], ...] = ()
    """Strides per level below the first, per axis, such as ((1, 2, 2), (2, 2, 2)); () takes 2 everywhere."""
    kernels: tuple[tuple[int, ...], ...] = ()
    """Kernel sizes per level, per axis; () takes 3, in vnet 5."""
    skips: bool = True
    """Without skips, encoder features reach the decoder only through the bottom."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimizer of the trained parameters."""

    name: Optimizer = "adam"
    """Optimizer."""
    lr: Annotated[float, Allowed("a positive rate", lambda rate: 0 < rate < math.inf)] = 1e-3
    """Peak learning rate."""
    lr_grid: Rates = ()
    """Rates among which each variant of an arm takes the best on validation data before it trains; () takes `lr`."""
    lr_seeds: Seeds = ()
    """Seeds of these trials, used for nothing else, such as (9001, 9002)."""
    weight_decay: Amount = 0.0
    """Weight decay of adamw and sgd."""
    momentum: ShareBelowOne = 0.9
    """Nesterov momentum of sgd."""
    schedule: Schedule = "cosine"
    """Course of the rate after the warm-up (polynomial has power 0.9; plateau follows the run's own validation)."""
    warmup_steps: Count = 20
    """Steps in which the rate rises linearly to its peak; below train.steps and pretrain.steps."""
    clip_norm: Annotated[float, Allowed("a positive norm, or 0 for no clipping", lambda n: 0 <= n < math.inf)] = 0.0
    """Global norm over trained parameters to which gradients are clipped; 0 clips none."""
    plateau_ratio: ShareAboveZero = 0.995
    """plateau lowers the rate where a run's validation DSC falls below this share of its last."""
    plateau_factor: ShareBetween = 0.9
    """plateau multiplies the rate by this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The training loss."""

    name: Loss = "dice_ce"
    """Loss; those joined by _ are sums."""
    smooth: Positive = 1.0
    """Added to numerator and denominator of the Dice ratio."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network computes, whatever it is."""

    precision: Precision = "float32"
    """Precision of convolutions: in full, tf32 (fast on GPUs), or bfloat16 for features too; parameters are float32."""
    remat: bool = False
    """The backward pass computes levels again: less memory, about a third more time."""


FULL_PRECISION = Compute()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(Compute):
    """How long and in which batches a run trains."""

    steps: Number = 1000
    """Steps of every run on the target."""
    batch: Number = 2
    """Patches in a step."""
    accumulate: Number = 1
    """Batches whose gradients are averaged into one step."""
    log_every: Number = 20
    """Steps of one compiled call, over which the loss is averaged."""
    eval_every: int = 100
    """Steps between validations on whole cases; a multiple of log_every."""
    save_every: int = 200
    """Steps between checkpoints; a multiple of log_every."""
    snapshots: tuple[int, ...] = ()
    """Steps whose checkpoints are kept for good; step 0 and the last always are."""
    keep_best: bool = False
    """Keeps each run's parameters of its best validation too (scores use the last)."""

    @property
    def compute(self) -> Compute:
        """What of this the network is built with."""
        return Compute(precision=self.precision, remat=self.remat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Training on the source task."""

    steps: Number = 1000
    """Steps of every source network."""
    eval_every: int = 0
    """Steps between validations of source networks; 0 takes train.eval_every."""
    share: Literal["per_seed", "one"] = "per_seed"
    """Seed i starts from source network i, or all seeds from the same one."""
    from_workdir: str = ""
    """Networks used instead of pretraining: a study's workdir, a folder of its checkpoints, or one checkpoint in it."""
    from_arm: str = ""
    """The arm whose networks are taken from there; empty takes its source networks."""
    min_loaded: Share = 0.5
    """A transfer that finds a smaller share of the parameters is an error."""
    adapt_channels: bool = False
    """Where image channels differ, kernels take the source kernel's mean instead of starting anew."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmSettings:
    """One experimental condition: a start, what is trained, and the study's settings with the arm's overrides."""

    name: str
    """Its key in `arms`."""
    kind: Literal["network", "prior"] = "network"
    """prior is the mean label map of the training cases, with no network."""
    init: Annotated[str, INITS]
    """Start: random, pretrained (all or the paths that pretrained:PATH_REGEX matches) or mean_var."""
    freeze: Annotated[str, FREEZES]
    """What is not trained: none, encoder, decoder, all_but_head or regex:PATH_REGEX."""
    seed_offset: Count = 0
    """Added to the seed ids of this arm: a large number makes its seeds disjoint."""
    train_cases: tuple[int, ...] = ()
    """Those of the target's training set sizes that this arm has; () takes all."""
    vary: Annotated[tuple[str, ...], Written(read_streams, "study")] = ()
    """Streams that differ between this arm's seeds, some of init,order,subset; study takes the study's."""
    cross: Streams = ()
    """Two or three of init,order,subset: every id of one with every id of the others."""
    cross_ids: tuple[int, ...] = ()
    """Ids that are crossed; () takes the study's seeds."""
    model: ModelSettings
    optim: OptimSettings
    loss: LossSettings
    train: TrainSettings
    source: TaskSettings
    pretrain: PretrainSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Prediction of whole cases, and how it is scored."""

    overlap: ShareBelowOne = 0.5
    """Least shared part of neighbouring windows, along each axis."""
    val_overlap: ShareBelowOne = 0.25
    """The same for validation during training, where speed matters more."""
    window_batch: Number = 8
    """Windows in one compiled call."""
    flips: tuple[int, ...] = ()
    """Axes mirrored at test time, predictions averaged; k axes cost 2^k as much."""
    largest_component: Names = ()
    """Labels of which only the largest component is kept: 'a, b', or 'all'."""
    regions: Regions = ()
    """Unions of labels that are scored as well: 'whole=core+edema, ...'."""
    hd_definition: HdDefinition = "pooled"
    """HD95 as MedPy has it (pooled) or as MONAI has it (directed)."""
    surface_empty: SurfaceEmpty = "diagonal"
    """Distance of a missed label; diagonal is that of the image."""
    tolerance_mm: Amount = 0.0
    """Tolerance of NSD; 0 leaves it out."""
    save_predictions: bool = False
    """Keeps the label maps of the test cases as NIfTI, on their images' grids."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What is computed from tables and checkpoints."""

    confidence: ShareBetween = 0.95
    """Confidence of every interval; claims are judged at 0.95 whatever it is."""
    target_fraction: ShareAboveZero = 0.99
    """Convergence target: this share of scratch's final validation DSC."""
    cases: Count = 8
    """Test cases that networks are compared on, and validation cases, evenly spread; 0 analyses scores alone."""
    half: bool = False
    """Filters and similarities after half of the steps as well, where it was kept."""
    probes: bool = True
    """Fits a linear classifier to each layer's features."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where and how programs run; nothing here changes a result beyond rounding."""

    seed_map: Literal["auto", Strategy] = "auto"
    """How runs are mapped; auto takes loop on CPU and vmap elsewhere."""
    seeds_per_chunk: Auto = None
    """Runs trained at once: a number, or auto for what fits in memory."""
    devices: Auto = None
    """Devices used: a number, or auto for all."""
    store_dir: str = ""
    """Where prepared data is kept, so that studies may share it; empty keeps it inside the workdir."""
    data_residence: Literal["auto", "device", "host"] = "auto"
    """Where training images are; auto takes the host, which sends what steps need, where a device is too small."""
    keep_checkpoints: Number = 2
    """Last checkpoints that are kept; step 0 always is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The page."""

    examples: Count = 3
    """Test cases shown as pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A whole study.

    Arms carry their own model, optim, loss, train, source and pretrain; those of the study are what source networks
    are trained with, so that an arm's own rate or length changes its training on the target alone.
    """

    name: str = "study"
    """Title of the report."""
    num_seeds: Annotated[
        int, Allowed("a number from 1; comparisons between arms need at least 2, verdicts 8", lambda n: n >= 1)
    ] = 8
    """Runs of every arm; below 8 no claim is given a verdict."""
    seed_ids: Seeds = ()
    """Ids of the seeds; () takes 0 .. num_seeds - 1."""
    base_seed: Seed = 0
    """Feeds the streams that are not varied, and the splits."""
    vary: Annotated[tuple[str, ...], Written(read_streams, "init,order")] = ("init", "order")
    """Streams that differ between seeds: init (weights), order (batches, augmentation), subset (training cases)."""
    source: TaskSettings
    target: TaskSettings
    model: ModelSettings
    optim: OptimSettings
    loss: LossSettings
    train: TrainSettings
    pretrain: PretrainSettings
    arms: tuple[ArmSettings, ...]
    evaluate: EvaluateSettings
    analysis: AnalysisSettings
    runtime: RuntimeSettings
    report: ReportSettings

    @property
    def seeds(self) -> tuple[int, ...]:
        """Ids of the seeds of every arm."""
        return self.seed_ids or tuple(range(self.num_seeds))
