"""Every field of a study, with its default. Other configs start from this one and change what differs.

    python -m launch.study --config=configs/default.py --workdir=runs/default --config.target.data=PATH

Any field can be overridden on the command line: `--config.train.steps=2000`, `--config.target.patch='(48, 48, 48)'`.
"""

from ml_collections import ConfigDict


def task() -> ConfigDict:
    """A task: where its cases come from and how they become training data."""
    config = ConfigDict(sort_keys=False)
    # A folder in Medical Segmentation Decathlon or nnU-Net layout, or synthetic:NAME[?n=..&shape=..].
    config.data = "synthetic:blobs"  # of a source also `target`: the target's cases that its runs do not see
    config.labels = ()  # names of the labels to segment, in this order; () means all of dataset.json
    config.spacing_mm = "native"  # native, median (of the task), or a number per axis: '(1.0, 1.0, 3.0)'; 0: as it is
    config.as_slices = ""  # axial, coronal, sagittal: a 2-D network takes volumes slice by slice; empty: images are 2-D
    config.unit = "mm"  # mm, or voxel where the true spacing is unknown: the unit of every distance
    config.train_cases = (0,)  # training set sizes, each a variant of every arm; 0 means all
    config.val_cases = 8  # cases for learning curves, taken from the training side of each fold
    config.test_cases = 0  # cases held out in each fold; 0 means a share of 1 / folds (a fifth when folds is 1)
    config.folds = 1  # 1: a single split; k: every case is tested once
    config.patch = (32, 32, 32)  # voxels per axis
    config.clip = ()  # intensities are cut to this range first, such as a CT window: '(-160.0, 240.0)'
    config.noise = 0.0  # Gaussian noise added to every image, in its own standard deviations: a task made harder
    # Per case: zscore, zscore_nonzero, percentile, none; dataset: statistics of the training cases; auto: by modality.
    config.normalization = "zscore"
    config.bad_cases = "error"  # error: a case that cannot be used stops the study; skip: left out and reported
    config.shuffle_labels = False  # of a source: train on other cases' label maps (control: nothing fits together)
    config.foreground = 0.5  # share of patches that contain a voxel of a label drawn uniformly
    config.augment = ConfigDict(sort_keys=False)
    config.augment.flip = ()  # axes that may be flipped
    config.augment.rotate90 = ()  # axes among which patches turn by right angles; they need equal patch sizes
    config.augment.affine = 0.0  # probability of a small rotation and scaling per patch
    config.augment.rotation_deg = 15.0  # largest rotation of affine
    config.augment.scale = 0.15  # largest relative scaling of affine
    config.augment.contrast = 0.0  # probability of a random contrast per patch
    config.augment.blur = 0.0  # probability of a Gaussian blur per patch
    config.augment.low_resolution = 0.0  # probability of a loss of resolution per patch
    config.augment.gamma = 0.0  # probability of a random gamma per patch
    config.augment.brightness = 0.0  # probability of a random shift and scale of intensities per patch
    config.augment.noise = 0.0  # probability of added Gaussian noise per patch
    return config


def arm(init: str, freeze: str, **overrides: object) -> ConfigDict:
    """An arm: how the target network starts and what of it is trained.

    Overrides are fields of model, optim, loss, train, source or pretrain:
    `arm("pretrained", "none", optim={"lr": 1e-4})`.
    """
    config = ConfigDict(sort_keys=False)
    config.kind = "network"  # network, or prior: the mean label map of the training cases, with no network
    config.init = init  # random, pretrained, pretrained:PATH_REGEX, mean_var
    config.freeze = freeze  # none, encoder, decoder, all_but_head, regex:PATH_REGEX
    config.seed_offset = 0  # added to the seed ids of this arm: a large number makes its seeds disjoint
    config.train_cases = ()  # of the target's sizes, those of this arm; () means all
    config.vary = "study"  # study: config.vary; or some of init,order,subset for this arm alone; empty: nothing
    config.cross = ""  # two or three of init,order,subset: every id of one with every id of the others
    config.cross_ids = ()  # ids that are crossed; () means the study's seeds
    config.update(overrides)
    return config


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
        "first_k": arm("pretrained:encoder/level_[0-1]", "none"),
        "mean_var": arm("mean_var", "none"),
        "head_only": arm("pretrained", "all_but_head"),
        "frozen_random_decoder": arm("random", "decoder"),
        "pooled_encoder": arm("random", "none", model={"encoder": "pooled"}),
        "scratch_no_skip": arm("random", "none", model={"skips": False}),
        "frozen_random_encoder_no_skip": arm("random", "encoder", model={"skips": False}),
        # An A/A placebo: whatever differs from scratch is chance.
        "scratch_b": arm("random", "none", seed_offset=1000),
        "shuffled_source": arm("pretrained", "none", source={"shuffle_labels": True}),
        "self_transfer": arm("pretrained", "none", source={"data": "target"}),
        "prior": arm("random", "none", kind="prior"),
    }
    if config is not None:
        # References, so that they follow the study's own lengths wherever these are set.
        steps = config.train.get_oneway_ref("steps")
        arms["scratch_long"] = arm("random", "none", train={"steps": steps + config.pretrain.get_oneway_ref("steps")})
        arms["scratch_double"] = arm("random", "none", train={"steps": steps * 2})
    return arms


def pick_arms(*names: str, config: ConfigDict | None = None) -> ConfigDict:
    """Some of the named arms, in this order; `config` is needed for `scratch_long` and `scratch_double`."""
    named = named_arms(config)
    for name in names:
        if name not in named:
            later = {*named_arms(get_config())} - {*named}
            hint = "pass config=config, whose steps it follows" if name in later else f"named arms: {', '.join(named)}"
            raise ValueError(f"pick_arms: no arm {name!r}; {hint}")
    return ConfigDict({name: named[name] for name in names}, sort_keys=False)


def get_config() -> ConfigDict:
    """All fields with their defaults."""
    config = ConfigDict(sort_keys=False)
    config.name = "study"  # title of the report
    config.num_seeds = 8  # runs of every arm; below 8 no claim is given a verdict
    config.seed_ids = ()  # () means 0 .. num_seeds - 1
    config.base_seed = 0  # feeds the streams that are not varied, and the splits
    config.vary = "init,order"  # of init (weights), order (batches, augmentation), subset (training cases)

    config.source = task()  # pretrained on
    config.target = task()  # fine-tuned and evaluated on
    config.source.data = "synthetic:blobs?seed=1"

    config.model = ConfigDict(sort_keys=False)
    config.model.name = "unet"  # unet, multiscale_fcn, vnet; docs/networks.md describes them
    config.model.ndim = 3  # 2 or 3
    config.model.widths = (16, 32, 64)  # channels per level, finest first
    config.model.norm = "instance"  # none, instance, group, batch
    config.model.groups = 0  # of the group norm; 0 with the others
    config.model.dropout = 0.0  # share of features zeroed after each nonlinearity in training; not in frozen parts
    config.model.encoder = "learned"  # pooled: block means of the image instead of the encoder, without weights
    config.model.strides = ()  # per level below the first, per axis, e.g. ((1, 2, 2), (2, 2, 2)); () means 2
    config.model.kernels = ()  # per level, per axis; () means 3, in vnet 5
    config.model.skips = True  # False: encoder features reach the decoder only through the bottom

    config.optim = ConfigDict(sort_keys=False)
    config.optim.name = "adam"  # adam, adamw, sgd
    config.optim.lr = 1e-3  # peak rate
    config.optim.lr_grid = ()  # rates to choose from for each arm on validation data; (): lr
    config.optim.lr_seeds = ()  # seeds of these trials, used for nothing else, e.g. (9001, 9002)
    config.optim.weight_decay = 0.0  # adamw and sgd
    config.optim.momentum = 0.9  # of sgd (Nesterov)
    config.optim.schedule = "cosine"  # constant, cosine, polynomial (power 0.9), plateau; after the warm-up
    config.optim.warmup_steps = 20  # the rate rises linearly to its peak; below train.steps and pretrain.steps
    config.optim.clip_norm = 0.0  # global norm over trained parameters; 0: no clipping
    config.optim.plateau_ratio = 0.995  # plateau: where a run's validation DSC falls below this share of its last ...
    config.optim.plateau_factor = 0.9  # ... its rate is multiplied by this

    config.loss = ConfigDict(sort_keys=False)
    config.loss.name = "dice_ce"  # dice_ce, dice, ce, focal, dice_focal
    config.loss.smooth = 1.0  # of the Dice ratio

    config.train = ConfigDict(sort_keys=False)
    config.train.steps = 1000  # of every run on the target
    config.train.batch = 2  # patches in a step
    config.train.accumulate = 1  # batches whose gradients are averaged into one step
    config.train.log_every = 20  # steps of one compiled call; the loss is averaged over them
    config.train.eval_every = 100  # validation DSC on whole cases; a multiple of log_every
    config.train.save_every = 200  # checkpoints; a multiple of log_every
    config.train.snapshots = ()  # steps whose checkpoints are kept for good; step 0 and the last always are
    config.train.keep_best = False  # keep each run's parameters of its best validation too (scores use the last)
    config.train.precision = "float32"  # of convolutions: float32, tf32 (fast on GPUs) or bfloat16
    config.train.remat = False  # the backward pass computes levels again: less memory, about a third more time

    config.pretrain = ConfigDict(sort_keys=False)
    config.pretrain.steps = 1000  # of every source network
    config.pretrain.eval_every = 0  # as train.eval_every, for source networks; 0: the same
    config.pretrain.share = "per_seed"  # per_seed: seed i starts from source network i; one: all from the same
    # Instead of pretraining: a study's workdir, or a folder of its checkpoints, or one checkpoint in it.
    config.pretrain.from_workdir = ""
    config.pretrain.from_arm = ""  # whose networks are taken from there; empty: its source networks
    config.pretrain.min_loaded = 0.5  # a transfer that finds a smaller share of the parameters is an error
    config.pretrain.adapt_channels = (
        False  # other image channels: True takes the source kernel's mean, False starts anew
    )

    config.arms = pick_arms("scratch", "transfer", "frozen_random_encoder", "frozen_pretrained_encoder")

    config.evaluate = ConfigDict(sort_keys=False)
    config.evaluate.overlap = 0.5  # least shared part of neighbouring windows, along each axis
    config.evaluate.val_overlap = 0.25  # the same for validation during training, where speed matters more
    config.evaluate.window_batch = 8  # windows in one compiled call
    config.evaluate.flips = ()  # axes mirrored at test time, predictions averaged; k axes cost 2^k as much
    config.evaluate.largest_component = ""  # labels of which only the largest component is kept: 'a, b', or 'all'
    config.evaluate.regions = ""  # unions of labels scored as well: 'whole=core+edema, ...'
    config.evaluate.hd_definition = "pooled"  # of HD95: pooled (MedPy) or directed (MONAI)
    config.evaluate.surface_empty = "diagonal"  # distance of a missed label: diagonal (of the image), nan or inf
    config.evaluate.tolerance_mm = 0.0  # of NSD; 0: not computed
    config.evaluate.save_predictions = False  # keep the label maps of the test cases as NIfTI, on their images' grids

    config.analysis = ConfigDict(sort_keys=False)
    config.analysis.confidence = 0.95  # of every interval; claims are judged at 0.95 whatever it is
    config.analysis.target_fraction = 0.99  # convergence target: this share of scratch's final validation DSC
    # Test cases that networks are compared on, and validation cases; evenly spread. 0: scores alone are analysed.
    config.analysis.cases = 8

    config.runtime = ConfigDict(sort_keys=False)
    config.runtime.seed_map = "auto"  # vmap, loop, or auto: loop on CPU, vmap elsewhere
    config.runtime.seeds_per_chunk = "auto"  # runs trained at once: a number, or auto: what fits in memory
    config.runtime.devices = "auto"  # how many: a number, or auto: all
    config.runtime.store_dir = ""  # prepared data; empty: inside the workdir. Share one between studies to prepare once
    # Where training images are: device, host (what steps need is sent ahead), or auto: host where they would not fit.
    config.runtime.data_residence = "auto"
    config.runtime.keep_checkpoints = 2  # the last ones; step 0 is always kept

    config.report = ConfigDict(sort_keys=False)
    config.report.examples = 3  # test cases shown as pictures
    return config
