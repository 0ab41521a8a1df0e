"""Does a good start come from labels or from images? Source networks with and without labels, on two pairs of sets.

    python -m launch.study --config=configs/objectives.py:throat,FOLDER --workdir=runs/throat

PAIR,FOLDER names one of the pairs below and the folder that both of its sets lie in. Eight seeds start from scratch,
from a source's labels, from the source's images alone, and from images of the target that it does not see. A quarter
to three quarters of an hour on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import default

PAIRS = {"hippocampus": ("rodent_brain_epi", "hippocampus_mr"), "throat": ("headneck_oar_ct", "headneck_throat_ct")}
CT: dict = {"spacing_mm": "4, 4, 4", "clip": (-160.0, 240.0)}
SETS: dict[str, dict] = {
    "rodent_brain_epi": {"patch": (48, 16, 48), "flip": (0,)},
    "hippocampus_mr": {"flip": (0,), "test_cases": 24},
    "headneck_oar_ct": CT,  # its parotid glands have sides, which a flip would swap
    "headneck_throat_ct": CT,
}


def set_task(task: ConfigDict, name: str, folder: str) -> None:
    """Fills a task with the settings of a set."""
    own = SETS[name]
    task.data = f"{folder}/{name}" if folder else name
    for field in ("spacing_mm", "clip", "patch", "test_cases"):
        task[field] = own.get(field, task[field])
    task.val_cases = 4
    task.augment.flip = own.get("flip", ())


def get_config(pair: str = "hippocampus") -> ConfigDict:
    """The study of a pair; `pair` is PAIR or PAIR,FOLDER."""
    name, folder = (*pair.split(","), "")[:2]
    if name not in PAIRS:
        raise ValueError(f"no pair {name!r}; pairs: {', '.join(PAIRS)}")
    source, target = PAIRS[name]
    config = default.get_config()
    config.name = f"{source} to {target}, with labels and without"
    set_task(config.source, source, folder)
    set_task(config.target, target, folder)
    # All seeds train on the same few cases: the images of all others are what ssl_target learns from.
    config.target.train_cases = (8,)
    config.model.widths = (8, 16, 32)
    config.optim.lr = 2e-3
    config.optim.schedule = "constant"
    config.train.batch = 1
    config.train.steps = 300
    config.train.log_every = 10
    config.train.eval_every = 30
    config.train.save_every = 100
    config.pretrain.steps = 400
    config.pretrain.eval_every = 100
    config.evaluate.val_overlap = 0.0
    config.arms = default.pick_arms("scratch", "transfer", "ssl_source", "ssl_target")
    return config
