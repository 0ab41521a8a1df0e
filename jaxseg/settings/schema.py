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
    Factors,
    Names,
    Number,
    Positive,
    Rates,
    Regions,
    Seed,
    Seeds,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareBetween,
    Streams,
    Written,
    name_or,
    read_streams,
    read_varied,
)
from jaxseg.settings.task_schema import TaskSettings

Counts = Annotated[tuple[int, ...], Allowed("() or numbers from 1", lambda counts: min(counts, default=1) >= 1)]
ModelName = Literal["unet", "multiscale_fcn", "vnet", "nnunet"]
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
Objective = Literal["labels", "restore", "masked"]


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
    blocks: Counts = ()
    """Convolutions of each encoder level of unet and nnunet, or its residual blocks, finest first; () takes 2."""
    decoder_blocks: Counts = ()
    """Convolutions of each decoder level of unet and nnunet, finest first; () takes 2."""
    residual: bool = False
    """The levels of nnunet's encoder are residual blocks in place of convolutions, as in its ResEnc presets."""
    decoder_widths: Counts = ()
    """Channels of each decoder level of unet, finest first; () takes those of the encoder."""
    up: Literal["nearest", "transposed", "depthwise"] = "nearest"
    """How unet upsamples: to the nearest voxel, or by a transposed convolution, of each channel alone if depthwise."""
    pool_padding: tuple[int, ...] = ()
    """Axes that max pooling of unet pads by a voxel at both ends, as some do in PyTorch; a patch may then be odd."""
    head: Literal["product", "conv_norm"] = "product"
    """Head of unet: a product per voxel, or a convolution with the taps of the finest level and a norm."""
    activation: Literal["relu", "leaky_relu"] = "relu"
    """Nonlinearity of unet; leaky_relu keeps a hundredth of what is below 0."""
    order: Literal["conv_norm_act", "act_norm_conv"] = "conv_norm_act"
    """Order of convolution, norm and nonlinearity in unet; act_norm_conv has them in front, and a bias behind."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimizer of the trained parameters."""

    name: Optimizer = "adam"
    """Optimizer."""
    lr: Annotated[float, Allowed("a positive rate", lambda rate: 0 < rate < math.inf)] = 1e-3
    """Peak learning rate."""
    lr_grid: Rates = ()
    """Rates among which one is chosen on validation data before arms train; () takes `lr`."""
    lr_choice: Literal["joint", "per_arm"] = "joint"
    """One rate for all arms, the best on average; or one for each variant of an arm, with exploratory comparisons."""
    lr_seeds: Seeds = ()
    """Seeds of these trials, used for nothing else, such as (9001, 9002)."""
    lr_sizes: Literal["every", "largest"] = "every"
    """Training set sizes at which rates are tried; `largest` tries that of the study alone, and its rate serves all."""
    lr_factor: Annotated[float, Allowed("a positive factor", lambda factor: 0 < factor < math.inf)] = 1.0
    """Factor on the rate, also on one that arms choose jointly; an arm with another factor than 1 tries no rates."""
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
    head_first: ShareBelowOne = 0.0
    """Share of the steps, at the beginning, in which the head alone is trained."""
    rate_factors: Factors = ()
    """Rates of some parameters relative to the others', PATH_REGEX=FACTOR and a blank between, the first match wins."""
    plateau_ratio: ShareAboveZero = 0.995
    """plateau lowers the rate where a run's validation DSC falls below this share of its last."""
    plateau_factor: ShareBetween = 0.9
    """plateau multiplies the rate by this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The training loss."""

    name: Loss = "dice_ce"
    """Loss; those joined by _ are sums. Of overlapping regions it is binary, see `regions` of a task."""
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
    """Steps whose checkpoints are kept for good; step 0 and the last always are, of arms also a quarter and half."""
    keep_best: bool = False
    """Keeps each run's parameters of its best validation too (scores use the last)."""
    average: Annotated[float, Allowed("a share from 0 to 0.5", lambda share: 0 <= share <= 0.5)] = 0.0
    """Share of the last steps whose weights are averaged; the average is what is scored, 0 the last step's weights."""

    @property
    def scored_at(self) -> tuple[int, ...]:
        """Steps whose networks are kept and scored: those of a quarter and of half of the budget, and the last.

        All but the last are multiples of `log_every`, between which nothing leaves the compiled loop.
        """
        shorter = (self.steps // part // self.log_every * self.log_every for part in (4, 2))
        return (*dict.fromkeys(step for step in shorter if step), self.steps)

    @property
    def compute(self) -> Compute:
        """What of this the network is built with."""
        return Compute(precision=self.precision, remat=self.remat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Training on the source task."""

    objective: Objective = "labels"
    """What source networks learn: to segment labels or, from images alone, to restore corrupted or masked patches."""
    steps: Number = 1000
    """Steps of every source network."""
    eval_every: int = 0
    """Steps between validations of source networks; 0 takes train.eval_every."""
    share: Literal["per_seed", "one"] = "per_seed"
    """Seed i starts from source network i, or all seeds from the same one."""
    from_workdir: str = ""
    """Networks used instead of pretraining: a study's workdir, an import, a folder of checkpoints, or one in it."""
    from_arm: str = ""
    """The arm whose networks are taken from there; empty takes its source networks."""
    min_loaded: Share = 0.5
    """A transfer that finds a smaller share of the parameters is an error."""
    runs_per_source: Number = 1
    """Consecutive seeds that start from one source network; with 2 or more, sources and runs are nested."""
    adapt_channels: bool = False
    """Where image channels differ, a kernel takes the sum of the source kernel over its channels, divided by the number
    of new channels, instead of starting anew."""


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

    @property
    def tries_rates(self) -> bool:
        """Whether trials of this arm help to choose a rate: it has a network, and no multiple of the rate of others."""
        return self.kind == "network" and bool(self.optim.lr_grid) and self.optim.lr_factor == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Prediction of whole cases, and how it is scored."""

    overlap: ShareBelowOne = 0.5
    """Least shared part of neighbouring windows, along each axis."""
    val_overlap: ShareBelowOne = 0.25
    """The same for validation during training, where speed matters more."""
    val_limit: Count = 0
    """Validation cases that are looked at during training, evenly spread, since every look takes time; 0 takes all."""
    window_batch: Number = 8
    """Windows in one compiled call."""
    flips: tuple[int, ...] = ()
    """Axes mirrored at test time, predictions averaged; k axes cost 2^k as much."""
    largest_component: Names = ()
    """Labels of which only the largest component is kept: 'a, b', or 'all'."""
    regions: Regions = ()
    """Unions of labels that are scored as well: 'whole=core+edema, ...'."""
    lesions: Names = ()
    """Labels or regions whose connected components are counted as found, missed and spurious: 'a, b'."""
    lesion_overlap: ShareAboveZero = 0.1
    """Share of a lesion's voxels that is predicted where it is found."""
    lesion_min_volume: Amount = 0.0
    """Volume in mm^3 (mm^2 in 2-D, voxels with unit voxel) below which a component does not count."""
    hd_definition: HdDefinition = "pooled"
    """HD95 as MedPy has it (pooled) or as MONAI has it (directed)."""
    surface_empty: SurfaceEmpty = "diagonal"
    """Distance of a missed label; diagonal is that of the image."""
    tolerance_mm: Amount = 0.0
    """Tolerance of NSD; 0 leaves it out."""
    budget_tests: bool = False
    """Scores the networks of a quarter and of half of the steps on the test cases as well."""
    ensemble: bool = True
    """Scores each arm's seeds together too, as one network whose probabilities are the mean of theirs."""
    save_predictions: bool = False
    """Keeps the label maps of the test cases in the format and on the grids of their images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What is computed from tables and checkpoints."""

    confidence: ShareBetween = 0.95
    """Confidence of every interval; claims are judged at 0.95 whatever it is."""
    target_fraction: ShareAboveZero = 0.99
    """Convergence target: this share of scratch's final validation DSC."""
    cases: Count = 8
    """Test cases that networks are compared on, and validation cases, evenly spread; 0 analyses scores alone."""
    sizes: Literal["every", "largest"] = "every"
    """Training set sizes whose networks are compared; `largest` takes that of the study, on which claims are judged."""
    positions: Number = 4096
    """Voxels at which features are read, over all patches of these cases."""
    barrier_pairs: Number = 32
    """Pairs of runs of an arm whose networks are interpolated and aligned, at most about so many."""
    half: bool = False
    """Filters and similarities after half of the steps as well."""
    probes: bool = True
    """Fits a linear classifier to each layer's features."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Where and how programs run; nothing here changes a result beyond rounding."""

    seed_map: Literal["auto", Strategy] = "auto"
    """How runs are mapped; auto takes loop on CPU and vmap elsewhere."""
    seeds_per_chunk: Auto = None
    """Runs trained at once: a number, or auto for what fits or shares a program."""
    devices: Auto = None
    """Devices used: a number, or auto for all."""
    store_dir: str = ""
    """Where prepared data is kept, so that studies may share it; empty keeps it inside the workdir."""
    data_residence: Literal["auto", "device", "host"] = "auto"
    """Where training images are; auto takes the host, which sends what steps need, where a device is too small."""
    keep_checkpoints: Number = 2
    """Last checkpoints that are kept, besides those that always are (see train.snapshots)."""


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
    looks: Annotated[
        tuple[int, ...],
        Allowed("rising numbers of seeds from 2", lambda ns: list(ns) == sorted({*ns}) and min(ns, default=2) >= 2),
    ] = ()
    """Numbers of seeds at which the study is judged, declared before it trains, such as (8, 16); () takes the first."""
    seed_ids: Seeds = ()
    """Ids of the seeds; () takes 0 .. num_seeds - 1."""
    base_seed: Seed = 0
    """Feeds the streams that are not varied, and the splits."""
    vary: Annotated[tuple[str, ...], Written(read_varied, "init,order")] = ("init", "order")
    """What differs between seeds: init (weights), order (batches), subset (training cases), fold (test cases)."""
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

    @property
    def declared_seeds(self) -> tuple[int, ...]:
        """Ids of the seeds up to the last look that is declared, for which the study may be extended."""
        return self.seed_ids or tuple(range(max((self.num_seeds, *self.looks))))
