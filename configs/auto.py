"""A study of two folders whose grid, patch, network and length are still to be planned from their images.

    python -m launch.study --config=configs/auto.py:SOURCE,TARGET --workdir=runs/mine --stages=plan --budget=2h
    python -m launch.study --config=runs/mine/planned.py --workdir=runs/mine

The first command looks at the images, prints a setting for each of these fields with its reason, and writes them into a
config file; the second runs the study. This config itself does not train: its patches are empty until they are planned.
TARGET alone trains from scratch; SOURCE,TARGET,ARM+ARM picks from the named arms.
"""

from ml_collections import ConfigDict

from configs import default

ARMS = ("scratch", "transfer", "scratch_b", "prior")
"""Two arms to compare, a placebo that shows what chance does, and the mean label map."""


def get_config(folders: str = "synthetic:blobs?seed=1,synthetic:blobs") -> ConfigDict:
    """The study; `folders` is TARGET, SOURCE,TARGET or SOURCE,TARGET,ARM+ARM."""
    source, target, arms = (*folders.split(","), "", "")[:3]
    config = default.get_config()
    config.name = default.title_of(target or source)
    config.target.data = target or source
    # A rate of 3e-3 gains accuracy in runs of up to a few thousand steps (docs/accuracy.md).
    config.optim.lr = 3e-3
    config.target.patch = config.source.patch = ()
    names = arms.split("+") if arms else ARMS if target else ("scratch",)
    if target:
        config.source.data = source
    config.arms = default.pick_arms(*names, config=config)
    return config
