"""Transfer between two of twelve labelled sets: configs/claims.py with what each set needs (docs/studies).

    python -m launch.study --config=configs/pairs.py:cardiac_ed_mr,hippocampus_mr,FOLDER --workdir=runs/hippocampus

SOURCE,TARGET,FOLDER,ARMS,HOW names two sets, the folder that both lie in, and arms joined by +; without ARMS those that
one study can speak of. Two volumetric sets are segmented in 3-D, or slice by slice where HOW is "slices"; where one of
them holds images, the other is always taken slice by slice. Steps and sizes are those that two CPU cores train in about
an hour. Of several targets the studies answer C2; C3 has configs/difficulty.py, and C10 asks for eight source networks
with two runs each:

    python -m launch.study --config=configs/pairs.py:cardiac_ed_mr,hippocampus_mr,FOLDER,scratch+transfer_nested \
        --config.num_seeds=16 --config.target.train_cases=0 --workdir=runs/nested
"""

from ml_collections import ConfigDict

from configs import claims, default

IMAGES = ("nerve_us", "fetal_head_us", "lung_tumour_ct", "nuclei_micro")
CARDIAC: dict = {"spacing_mm": "2.5, 2.5, 0", "patch": (64, 64, 8), "flip": (), "sizes": (4, 8, 16, 0)}
# The grid that most of the cases have; the first of these sets labels sides, and is not flipped therefore.
CT: dict = {"spacing_mm": "3.9, 3.9, 2.5", "normalization": "dataset"}
SETS: dict[str, dict] = {
    "hippocampus_mr": {"patch": (32, 32, 32), "slice": (40, 56), "flip": (0,), "sizes": (4, 16, 64, 0)},
    "cardiac_ed_mr": CARDIAC,
    "cardiac_es_mr": CARDIAC | {"folds": 2, "sizes": (4, 8, 0)},
    "fetal_brain_mr": {"patch": (48, 48, 48), "flip": (0,), "sizes": (2, 4, 0)},
    "headneck_oar_ct": {"patch": (32, 32, 32), "flip": (), "sizes": (4, 16, 48, 0)} | CT,
    "headneck_throat_ct": {"patch": (32, 32, 32), "flip": (0,), "steps": 1000} | CT,
    "headneck_target_ct": {"patch": (32, 32, 32), "flip": (0,), "steps": 1000} | CT,
    "rodent_brain_epi": {"patch": (48, 16, 48), "slices": "coronal", "flip": (0,), "sizes": (4, 8, 16, 0)},
    "nerve_us": {"spacing_mm": "2, 2", "unit": "voxel", "flip": (0,), "folds": 2, "control": (4,)},
    "fetal_head_us": {"spacing_mm": "1, 1", "flip": (0, 1)},
    "lung_tumour_ct": {"slice": (48, 48), "flip": (0, 1), "folds": 2, "control": (4,)},
    "nuclei_micro": {"spacing_mm": "2, 2", "unit": "voxel", "flip": (0, 1)},
}
"""What of a task's settings differs: its grid, its unit, which flips keep it plausible, training set sizes, the steps
that its networks need (500 if left out), on how many folds of its cases the seeds are tested in turn where one fifth
would hold too few patients, and sizes of the positive control where more of them would leave it no patient to learn
from."""
ARMS = (
    *("scratch", "transfer", "scratch_b", "self_transfer"),
    *("frozen_random_encoder", "pooled_encoder", "prior", "scratch_slow", "scratch_fast"),
)
ONE_SIZE = (*claims.AT_ALL_CASES, "frozen_pretrained_encoder", "scratch_long", "mean_var")
"""Arms that no comparison between sizes needs: trained on all cases, where verdicts are drawn."""


def set_task(task: ConfigDict, name: str, folder: str, ndim: int) -> None:
    """Fills a task with the settings of a set."""
    own = SETS[name]
    task.data = f"{folder}/{name}" if folder else name
    task.unit = own.get("unit", "mm")
    task.spacing_mm = own.get("spacing_mm", "native")
    task.patch = own["patch"] if ndim == 3 else own.get("slice", (64, 64))
    task.as_slices = own.get("slices", "axial") if ndim == 2 and name not in IMAGES else ""
    task.normalization = own.get("normalization", task.normalization)
    task.val_cases = 2
    task.augment.flip = own["flip"]
    task.augment.gamma = 0.2
    task.augment.brightness = 0.2


def get_config(pair: str = "cardiac_ed_mr,hippocampus_mr") -> ConfigDict:
    """The study; `pair` is SOURCE,TARGET, with ,FOLDER, with ,FOLDER,ARM+ARM, or with ,FOLDER,ARM+ARM,slices."""
    source, target, folder, arms, how = (*pair.split(","), "", "", "")[:5]
    for name in (source, target):
        if name not in SETS:
            raise ValueError(f"no set {name!r}; sets: {', '.join(SETS)}")
    if how not in ("", "slices"):
        raise ValueError(f"{how!r} after the arms; give 'slices' or nothing")
    config = claims.get_config(f"{source},{target}")
    config.name = f"{source} to {target}"
    config.model.ndim = 2 if how or {source, target} & {*IMAGES} else 3
    # Images need more context than small volumes, and levels cost little in 2-D.
    config.model.widths = (8, 16, 32, 64) if config.model.ndim == 2 else (8, 16, 32)
    set_task(config.source, source, folder, config.model.ndim)
    set_task(config.target, target, folder, config.model.ndim)
    sizes = SETS[target].get("sizes", (4, 8, 24, 0))
    config.target.train_cases = sizes
    config.target.folds = SETS[target].get("folds", 1)
    if config.target.folds > 1:
        config.vary = "init,order,subset,fold"
    config.train.steps = SETS[target].get("steps", 500)
    config.train.log_every, config.train.save_every, config.pretrain.eval_every = 10, 250, 100
    config.train.batch = 4 if config.model.ndim == 2 else 1
    config.evaluate.tolerance_mm = 2.0
    config.evaluate.val_limit = 2  # one of each of two patients, where patients have many images

    names = arms.split("+") if arms else ARMS
    config.arms = default.pick_arms(*names, config=config)
    # The placebo shows at both ends what chance does; of the positive control the other cases are the source.
    control = SETS[target].get("control", sizes[:2])
    for arms_of, trained_on in ((ONE_SIZE, (0,)), (("scratch_b",), (sizes[0], 0)), (("self_transfer",), control)):
        for name in {*names} & {*arms_of}:
            config.arms[name].train_cases = trained_on
    return config
