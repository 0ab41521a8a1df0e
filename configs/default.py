"""Every field of a study, with its default. Other configs start from this one and change what differs.

    python -m launch.study --config=configs/default.py --workdir=runs/default \
        --config.target.data=PATH/TARGET --config.source.data=PATH/SOURCE

A task whose `data` is not set is made of synthetic blobs, the source too.

Any field can be overridden on the command line: `--config.train.steps=2000`, `--config.target.patch='(48, 48, 48)'`.
"""

from ml_collections import ConfigDict


def task() -> ConfigDict:
    """A task: where its cases come from and how they become training data."""
    config = ConfigDict(sort_keys=False)
    # A folder in Medical Segmentation Decathlon or nnU-Net layout, or synthetic:NAME[?n=..&shape=..]; of a source also
    # `target`, the cases of the target that its runs do not see, and A+B, several of these pooled
    config.data = "synthetic:blobs"
    config.labels = ()  # Names of the labels to segment, in this order; () takes all of dataset.json
    # Overlapping regions, segmented in place of labels: 'whole=edema+core, core=core'; each writes its first label
    config.regions = ""
    # Voxel size of training: native, median, or a number per axis such as '1.0, 1.0, 3.0' (0 keeps it as it is)
    config.spacing_mm = "native"
    # A 2-D network segments volumes slice by slice: axial, coronal or sagittal; empty where images are 2-D
    config.as_slices = ""
    config.unit = "mm"  # Unit of every distance; voxel where the true spacing is unknown [mm, voxel]
    config.train_cases = (0,)  # Training set sizes, each a variant of every arm; 0 takes all training cases
    config.val_cases = 8  # Cases for learning curves, taken from the training side of each fold
    config.test_cases = 0  # Cases held out in each fold; 0 holds out a share of 1 / folds (a fifth where folds is 1)
    config.folds = 1  # 1 makes a single split; with k folds every case is tested once
    config.patch = (32, 32, 32)  # Voxels of a patch per axis
    config.clip = ()  # Intensities are first cut to this range, such as a CT window '(-160.0, 240.0)'; () cuts none
    # Gaussian noise added to every image, in its own standard deviations: a task made harder on purpose
    config.noise = 0.0
    # Intensities per case; dataset takes statistics of the training cases, auto decides by modality [zscore,
    # zscore_nonzero, percentile, none, dataset, auto]
    config.normalization = "zscore"
    # External test sets, each a folder or NAME=FOLDER; imagesTs stands for the target's own imagesTs/ and labelsTs/,
    # where it has them, and () takes none. Sets may be added to a study that is trained
    config.test_data = ("imagesTs",)
    config.bad_cases = "error"  # A case that cannot be used stops the study, or is left out and reported [error, skip]
    # A source trains on other cases' label maps: a control in which nothing fits together
    config.shuffle_labels = False
    config.foreground = 0.5  # Share of patches that contain a voxel of a label drawn uniformly
    config.augment = ConfigDict(sort_keys=False)
    config.augment.flip = ()  # Axes that may be flipped, each with probability 1/2
    config.augment.rotate90 = ()  # Axes among which patches are turned by right angles; they need equal patch sizes
    config.augment.affine = 0.0  # Probability of a small rotation and scaling per patch
    config.augment.rotation_deg = 15.0  # Largest rotation of `affine`
    config.augment.scale = 0.15  # Largest relative scaling of `affine`
    config.augment.contrast = 0.0  # Probability of a random contrast per patch
    config.augment.blur = 0.0  # Probability of a Gaussian blur per patch
    config.augment.low_resolution = 0.0  # Probability of a loss of resolution per patch
    config.augment.gamma = 0.0  # Probability of a random gamma per patch
    config.augment.brightness = 0.0  # Probability of a random shift and scale of intensities per patch
    config.augment.noise = 0.0  # Probability of added Gaussian noise per patch
    return config


def arm(init: str, freeze: str, **overrides: object) -> ConfigDict:
    """An arm: how the target network starts and what of it is trained.

    Overrides are fields of model, optim, loss, train, source or pretrain:
    `arm("pretrained", "none", optim={"lr": 1e-4})`.
    """
    config = ConfigDict(sort_keys=False)
    config.kind = "network"  # prior is the mean label map of the training cases, with no network [network, prior]
    config.init = init  # Start: random, pretrained (all or the paths that pretrained:PATH_REGEX matches) or mean_var
    config.freeze = freeze  # What is not trained: none, encoder, decoder, all_but_head or regex:PATH_REGEX
    config.seed_offset = 0  # Added to the seed ids of this arm: a large number makes its seeds disjoint
    config.train_cases = ()  # Those of the target's training set sizes that this arm has; () takes all
    # Streams that differ between this arm's seeds, some of init,order,subset; study takes the study's
    config.vary = "study"
    config.cross = ""  # Two or three of init,order,subset: every id of one with every id of the others
    config.cross_ids = ()  # Ids that are crossed; () takes the study's seeds
    config.update(overrides)
    return config


OWN_SOURCE = {"from_workdir": "", "from_arm": ""}
"""Overrides of `pretrain` by which a study trains an arm's source networks itself."""


def named_arms(config: ConfigDict | None = None) -> dict[str, ConfigDict]:
    """Arms with established names (docs/arms.md says what each controls for); a config picks from them.

    Args:
        config: The study, whose fields the longer arms refer to; without it these are left out.
    """
    arms = {
        "scratch": arm("random", "none"),
        "transfer": arm("pretrained", "none"),
        "frozen_random_encoder": arm("random", "encoder"),
        "frozen_pretrained_encoder": arm("pretrained", "encoder"),
        "transfer_encoder": arm("pretrained:^encoder/", "none"),
        "transfer_decoder": arm("pretrained:^decoder/", "none"),
        "mean_var": arm("mean_var", "none"),
        "head_only": arm("pretrained", "all_but_head"),
        # Ways of fine-tuning: a head that fits the features before these move, and an encoder that moves slowly.
        "transfer_head_first": arm("pretrained", "none", optim={"head_first": 0.2}),
        "transfer_slow_encoder": arm("pretrained", "none", optim={"rate_factors": "^encoder/=0.1"}),
        "frozen_random_decoder": arm("random", "decoder"),
        "pooled_encoder": arm("random", "none", model={"encoder": "pooled"}),
        "scratch_no_skip": arm("random", "none", model={"skips": False}),
        "frozen_random_encoder_no_skip": arm("random", "encoder", model={"skips": False}),
        # An A/A placebo: whatever differs from scratch is chance.
        "scratch_b": arm("random", "none", seed_offset=1000),
        # Their sources are made for them, also in a study that starts from networks trained elsewhere.
        "shuffled_source": arm("pretrained", "none", source={"shuffle_labels": True}, pretrain=OWN_SOURCE),
        "self_transfer": arm("pretrained", "none", source={"data": "target"}, pretrain=OWN_SOURCE),
        # Pretrained on images alone: those of the source, or those of the target that the run does not see.
        "ssl_source": arm("pretrained", "none", pretrain=OWN_SOURCE | {"objective": "restore"}),
        "ssl_target": arm(
            "pretrained", "none", source={"data": "target"}, pretrain=OWN_SOURCE | {"objective": "restore"}
        ),
        # Several runs from each source network: what fine-tuning alone makes them differ by.
        "transfer_nested": arm("pretrained", "none", pretrain={"runs_per_source": 2}),
        # Rates a factor of 3 apart, also where the one between is chosen by trials: how far filters move depends on it.
        "scratch_slow": arm("random", "none", optim={"lr_factor": 1 / 3}),
        "scratch_fast": arm("random", "none", optim={"lr_factor": 3.0}),
        "prior": arm("random", "none", kind="prior"),
    }
    if config is not None:
        # References, so that they follow the study's own lengths wherever these are set.
        steps = config.train.get_oneway_ref("steps")
        for name in first_arms(config):
            arms[name] = first_levels(int(name.removeprefix("first_")))
        arms["scratch_long"] = arm("random", "none", train={"steps": steps + config.pretrain.get_oneway_ref("steps")})
    return arms


def first_arms(config: ConfigDict) -> tuple[str, ...]:
    """Names of the arms that start with the first 1, 2, ... encoder levels pretrained, up to all levels."""
    return tuple(f"first_{k}" for k in range(1, 1 + len(config.model.widths)))


def first_levels(k: int) -> ConfigDict:
    """The arm that starts with the first k encoder levels pretrained, at most 20."""
    # With the slash, so that level_1 is not the beginning of level_10 too.
    levels = f"[0-{k - 1}]" if k <= 10 else f"([0-9]|1[0-{k - 11}])"
    return arm(f"pretrained:encoder/level_{levels}/", "none")


def pick_arms(*names: str, config: ConfigDict | None = None) -> ConfigDict:
    """Some of the named arms, in this order.

    `first_2` and the like start with as many pretrained encoder levels, and `first_k` stands for `first_1`, `first_2`,
    ... up to all levels of the network: `pick_arms("scratch", "first_k", "mean_var", "transfer", config=config)` asks
    where reuse stops paying.

    Args:
        names: Names of arms.
        config: The study, which `first_k` and `scratch_long` follow.
    """
    named = named_arms(config) | {f"first_{k}": first_levels(k) for k in range(1, 10)}
    if config is not None:
        names = tuple(one for name in names for one in (first_arms(config) if name == "first_k" else (name,)))
    for name in names:
        if name not in named:
            later = {*named_arms(get_config()), "first_k"} - {*named}
            known = ", ".join(named_arms(config))
            hint = "pass config=config, which it follows" if name in later else f"named arms: {known}, first_k"
            raise ValueError(f"pick_arms: no arm {name!r}; {hint}")
    return ConfigDict({name: named[name] for name in names}, sort_keys=False)


def title_of(data: str) -> str:
    """What a report calls a folder: its name, without those of the folders that it lies in."""
    return data.rstrip("/").rpartition("/")[2]


def get_config() -> ConfigDict:
    """All fields with their defaults."""
    config = ConfigDict(sort_keys=False)
    config.name = "study"  # Title of the report
    config.num_seeds = 8  # Runs of every arm; below 8 no claim is given a verdict
    # Numbers of seeds at which the study is judged, declared before it trains, such as (8, 16); () takes the first
    config.looks = ()
    config.seed_ids = ()  # Ids of the seeds; () takes 0 .. num_seeds - 1
    config.base_seed = 0  # Feeds the streams that are not varied, and the splits
    # What differs between seeds: init (weights), order (batches), subset (training cases), fold (test cases)
    config.vary = "init,order"

    config.source = task()  # pretrained on
    config.target = task()  # fine-tuned and evaluated on
    config.source.data = "synthetic:blobs?seed=1"

    config.model = ConfigDict(sort_keys=False)
    config.model.name = "unet"  # Network; docs/networks.md describes them [unet, multiscale_fcn, vnet, nnunet]
    config.model.ndim = 3  # Spatial axes [2, 3]
    config.model.widths = (16, 32, 64)  # Channels per level, finest first
    config.model.norm = "instance"  # Normalization of features [none, instance, group, batch]
    config.model.groups = 0  # Groups of the group norm; 0 with the others
    # Share of features zeroed after each nonlinearity in training; not beside frozen kernels
    config.model.dropout = 0.0
    # pooled takes block means of the image in place of the encoder's features; it has no weights [learned, pooled]
    config.model.encoder = "learned"
    # Strides per level below the first, per axis, such as ((1, 2, 2), (2, 2, 2)); () takes 2 everywhere
    config.model.strides = ()
    config.model.kernels = ()  # Kernel sizes per level, per axis; () takes 3, in vnet 5
    config.model.skips = True  # Without skips, encoder features reach the decoder only through the bottom
    # Convolutions of each encoder level of unet and nnunet, or its residual blocks, finest first; () takes 2
    config.model.blocks = ()
    config.model.decoder_blocks = ()  # Convolutions of each decoder level of unet and nnunet, finest first; () takes 2
    # The levels of nnunet's encoder are residual blocks in place of convolutions, as in its ResEnc presets
    config.model.residual = False
    # Channels of each decoder level of unet, finest first; () takes those of the encoder
    config.model.decoder_widths = ()
    # How unet upsamples: to the nearest voxel, or by a transposed convolution, of each channel alone if depthwise
    # [nearest, transposed, depthwise]
    config.model.up = "nearest"
    # Axes that max pooling of unet pads by a voxel at both ends, as some do in PyTorch; a patch may then be odd
    config.model.pool_padding = ()
    # Head of unet: a product per voxel, or a convolution with the taps of the finest level and a norm [product,
    # conv_norm]
    config.model.head = "product"
    # Nonlinearity of unet; leaky_relu keeps a hundredth of what is below 0 [relu, leaky_relu]
    config.model.activation = "relu"
    # Order of convolution, norm and nonlinearity in unet; act_norm_conv has them in front, and a bias behind
    # [conv_norm_act, act_norm_conv]
    config.model.order = "conv_norm_act"

    config.optim = ConfigDict(sort_keys=False)
    config.optim.name = "adam"  # Optimizer [adam, adamw, sgd]
    config.optim.lr = 0.001  # Peak learning rate
    config.optim.lr_grid = ()  # Rates among which one is chosen on validation data before arms train; () takes `lr`
    # One rate for all arms, the best on average; or one for each variant of an arm, with exploratory comparisons
    # [joint, per_arm]
    config.optim.lr_choice = "joint"
    config.optim.lr_seeds = ()  # Seeds of these trials, used for nothing else, such as (9001, 9002)
    # Training set sizes at which rates are tried; `largest` tries that of the study alone, and its rate serves all
    # [every, largest]
    config.optim.lr_sizes = "every"
    # Factor on the rate, also on one that arms choose jointly; an arm with another factor than 1 tries no rates
    config.optim.lr_factor = 1.0
    config.optim.weight_decay = 0.0  # Weight decay of adamw and sgd
    config.optim.momentum = 0.9  # Nesterov momentum of sgd
    # Course of the rate after the warm-up (polynomial has power 0.9; plateau follows the run's own validation)
    # [constant, cosine, polynomial, plateau]
    config.optim.schedule = "cosine"
    # Steps in which the rate rises linearly to its peak; below train.steps and pretrain.steps
    config.optim.warmup_steps = 20
    config.optim.clip_norm = 0.0  # Global norm over trained parameters to which gradients are clipped; 0 clips none
    config.optim.head_first = 0.0  # Share of the steps, at the beginning, in which the head alone is trained
    # Rates of some parameters relative to the others', PATH_REGEX=FACTOR and a blank between, the first match wins
    config.optim.rate_factors = ""
    # plateau lowers the rate where a run's validation DSC falls below this share of its last
    config.optim.plateau_ratio = 0.995
    config.optim.plateau_factor = 0.9  # plateau multiplies the rate by this

    config.loss = ConfigDict(sort_keys=False)
    # Loss; those joined by _ are sums. Of overlapping regions it is binary, see `regions` of a task [dice_ce, dice, ce,
    # focal, dice_focal]
    config.loss.name = "dice_ce"
    config.loss.smooth = 1.0  # Added to numerator and denominator of the Dice ratio

    config.train = ConfigDict(sort_keys=False)
    config.train.steps = 1000  # Steps of every run on the target
    config.train.batch = 2  # Patches in a step
    config.train.accumulate = 1  # Batches whose gradients are averaged into one step
    config.train.log_every = 20  # Steps of one compiled call, over which the loss is averaged
    config.train.eval_every = 100  # Steps between validations on whole cases; a multiple of log_every
    config.train.save_every = 200  # Steps between checkpoints; a multiple of log_every
    # Steps whose checkpoints are kept for good; step 0 and the last always are, of arms also a quarter and half
    config.train.snapshots = ()
    # Share of the last steps whose weights are averaged; the average is what is scored, 0 the last step's weights
    config.train.average = 0.0
    config.train.keep_best = False  # Keeps each run's parameters of its best validation too (scores use the last)
    # Precision of convolutions: in full, tf32 (fast on GPUs), or bfloat16 for features too; parameters are float32
    # [float32, tf32, bfloat16]
    config.train.precision = "float32"
    config.train.remat = False  # The backward pass computes levels again: less memory, about a third more time

    config.pretrain = ConfigDict(sort_keys=False)
    # What source networks learn: to segment labels or, from images alone, to restore corrupted or masked patches
    # [labels, restore, masked]
    config.pretrain.objective = "labels"
    config.pretrain.steps = 1000  # Steps of every source network
    config.pretrain.eval_every = 0  # Steps between validations of source networks; 0 takes train.eval_every
    # Seed i starts from source network i, or all seeds from the same one [per_seed, one]
    config.pretrain.share = "per_seed"
    # Networks used instead of pretraining: a study's workdir, an import, a folder of checkpoints, or one in it
    config.pretrain.from_workdir = ""
    config.pretrain.from_arm = ""  # The arm whose networks are taken from there; empty takes its source networks
    config.pretrain.min_loaded = 0.5  # A transfer that finds a smaller share of the parameters is an error
    # Consecutive seeds that start from one source network; with 2 or more, sources and runs are nested
    config.pretrain.runs_per_source = 1
    # Where image channels differ, a kernel takes the sum of the source kernel over its channels, divided by the number
    # of new channels, instead of starting anew
    config.pretrain.adapt_channels = False

    config.arms = pick_arms("scratch", "transfer", "frozen_random_encoder", "frozen_pretrained_encoder")

    config.evaluate = ConfigDict(sort_keys=False)
    config.evaluate.overlap = 0.5  # Least shared part of neighbouring windows, along each axis
    config.evaluate.val_overlap = 0.25  # The same for validation during training, where speed matters more
    # Validation cases that are looked at during training, evenly spread, since every look takes time; 0 takes all
    config.evaluate.val_limit = 0
    config.evaluate.window_batch = 8  # Windows in one compiled call
    config.evaluate.flips = ()  # Axes mirrored at test time, predictions averaged; k axes cost 2^k as much
    config.evaluate.largest_component = ""  # Labels of which only the largest component is kept: 'a, b', or 'all'
    config.evaluate.regions = ""  # Unions of labels that are scored as well: 'whole=core+edema, ...'
    # Labels or regions whose connected components are counted as found, missed and spurious: 'a, b'
    config.evaluate.lesions = ""
    config.evaluate.lesion_overlap = 0.1  # Share of a lesion's voxels that is predicted where it is found
    # Volume in mm^3 (mm^2 in 2-D, voxels with unit voxel) below which a component does not count
    config.evaluate.lesion_min_volume = 0.0
    # HD95 as MedPy has it (pooled) or as MONAI has it (directed) [pooled, directed]
    config.evaluate.hd_definition = "pooled"
    # Distance of a missed label; diagonal is that of the image [diagonal, nan, inf]
    config.evaluate.surface_empty = "diagonal"
    config.evaluate.tolerance_mm = 0.0  # Tolerance of NSD; 0 leaves it out
    # Scores the networks of a quarter and of half of the steps on the test cases as well
    config.evaluate.budget_tests = False
    # Scores each arm's seeds together too, as one network whose probabilities are the mean of theirs
    config.evaluate.ensemble = True
    # Keeps the label maps of the test cases in the format and on the grids of their images
    config.evaluate.save_predictions = False

    config.analysis = ConfigDict(sort_keys=False)
    config.analysis.confidence = 0.95  # Confidence of every interval; claims are judged at 0.95 whatever it is
    config.analysis.target_fraction = 0.99  # Convergence target: this share of scratch's final validation DSC
    # Test cases that networks are compared on, and validation cases, evenly spread; 0 analyses scores alone
    config.analysis.cases = 8
    # Training set sizes whose networks are compared; `largest` takes that of the study, on which claims are judged
    # [every, largest]
    config.analysis.sizes = "every"
    config.analysis.positions = 4096  # Voxels at which features are read, over all patches of these cases
    # Pairs of runs of an arm whose networks are interpolated and aligned, at most about so many
    config.analysis.barrier_pairs = 32
    config.analysis.half = False  # Filters and similarities after half of the steps as well
    config.analysis.probes = True  # Fits a linear classifier to each layer's features

    config.runtime = ConfigDict(sort_keys=False)
    # How runs are mapped; auto takes loop on CPU and vmap elsewhere [auto, vmap, loop]
    config.runtime.seed_map = "auto"
    config.runtime.seeds_per_chunk = "auto"  # Runs trained at once: a number, or auto for what fits or shares a program
    config.runtime.devices = "auto"  # Devices used: a number, or auto for all
    # Where prepared data is kept, so that studies may share it; empty keeps it inside the workdir
    config.runtime.store_dir = ""
    # Where training images are; auto takes the host, which sends what steps need, where a device is too small [auto,
    # device, host]
    config.runtime.data_residence = "auto"
    # Last checkpoints that are kept, besides those that always are (see train.snapshots)
    config.runtime.keep_checkpoints = 2

    config.report = ConfigDict(sort_keys=False)
    config.report.examples = 3  # Test cases shown as pictures
    return config
