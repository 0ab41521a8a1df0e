"""The studies that `launch.benchmark --study` times: a pair of images, a pair of volumes, and the smallest to try it.

    python -m launch.study --config=benchmarks/pair.py:3d --workdir=runs/pair_3d

NAME[,FOLDER[,STEPS]] gives the pair (2d, 3d or smallest), the folder with the sets of configs/pairs.py, and the
training steps of every network. In 2-D the sets are fetal_head_us and nerve_us, in 3-D cardiac_ed_mr and
hippocampus_mr; without a folder, or with an empty one, the tasks are synthetic, with images of about the same size.
Eight seeds each of scratch and transfer, of a placebo and of a positive control: 32 networks and 16 source networks.
"""

from ml_collections import ConfigDict

from configs import default, pairs

SETS = {"2d": ("fetal_head_us", "nerve_us"), "3d": ("cardiac_ed_mr", "hippocampus_mr"), "smallest": ("", "")}
"""Source and target of each pair in a folder."""
SHAPES = {"2d": "96x96", "3d": "40x40x40", "smallest": "16x16"}
"""Voxels of the synthetic images."""
PATCHES = {"2d": (64, 64), "3d": (32, 32, 32), "smallest": (8, 8)}
ARMS = ("scratch", "transfer", "scratch_b", "self_transfer")
SEEDS, STEPS = 8, 500
TRAIN_CASES = {"2d": 8, "3d": 16, "smallest": 3}
"""Images of as many patients in 2-D: more of them would leave the positive control no patient to learn from."""
SMALLEST_STEPS = 4
"""Training steps of the pair `smallest`, where no other number is asked for."""


def get_config(words: str = "3d") -> ConfigDict:
    """The study; see above for its words."""
    name, folder, steps = (*words.split(","), "", "")[:3]
    if name not in SETS:
        raise ValueError(f"no pair {name!r}; pairs: {', '.join(SETS)}")
    if folder and name == "smallest":
        raise ValueError("the pair 'smallest' has synthetic images alone; leave the folder empty")
    if steps and not (steps.isdigit() and int(steps)):
        raise ValueError(f"{steps!r} is no number of steps from 1")
    config = pairs.get_config(",".join(SETS["2d" if name == "smallest" else name]) + f",{folder}")
    config.name, config.num_seeds = f"benchmark {name}", SEEDS
    config.looks = ()
    config.vary = "init,order"  # one draw of training cases, which leaves others for the positive control
    config.arms = default.pick_arms(*ARMS)
    if not folder:
        _set_synthetic(config, name)
    config.target.train_cases, config.target.folds = (TRAIN_CASES[name],), 1
    config.optim.lr_grid, config.optim.lr_seeds = (), ()
    if name == "smallest":
        _make_small(config)
    count = int(steps or (SMALLEST_STEPS if name == "smallest" else STEPS))
    every = max(count // 50, 1)  # the claim about training time needs a validation every fiftieth of the steps
    config.train.steps = config.pretrain.steps = count
    config.optim.warmup_steps = min(config.optim.warmup_steps, count // 4)
    config.train.log_every = config.train.eval_every = every
    config.train.save_every = config.pretrain.eval_every = 10 * every
    return config


def _set_synthetic(config: ConfigDict, name: str) -> None:
    """Lets both tasks be made by jaxseg itself: 60 cases of the source and 60 of the target, 12 of them for tests."""
    data = f"synthetic:blobs?n=60&shape={SHAPES[name]}"
    config.source.data, config.target.data = f"{data}&seed=1&relatedness=0.7", data
    for task in (config.source, config.target):
        task.spacing_mm, task.patch, task.test_cases = "native", PATCHES[name], 12


def _make_small(config: ConfigDict) -> None:
    """Makes the study as small as one can be that runs every stage; nothing is learned, and no verdict reached."""
    config.num_seeds, config.model.widths = 2, (2, 4)
    config.source.data = config.source.data.replace("n=60", "n=9")
    config.target.data = config.target.data.replace("n=60", "n=14")
    config.analysis.cases = 1
    for task in (config.source, config.target):
        task.val_cases, task.test_cases = 2, 2
