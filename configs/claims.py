"""The study that can answer: whether a start from SOURCE helps on TARGET, with the controls that an answer needs.

    python -m launch.study --config=configs/claims.py:FOLDER_OF_SOURCE,FOLDER_OF_TARGET --workdir=runs/answer

SOURCE and TARGET are what `data` takes: folders of images and labels, or built-in tasks. All arms train at one constant
rate, chosen on a seed used for nothing else; the weights of the last fifth of the steps are averaged; training sets go
from a few cases to all; there is a placebo and a positive control. Eight seeds are the first look at the data, and
`--config.num_seeds=16` in the same workdir trains eight more for the second (docs/claims.md). On two CPU cores small
volumes take many hours: `--dry_run` says how long, `target.train_cases` and `train.steps` (a multiple of 100) make it
shorter.
"""

from ml_collections import ConfigDict

from configs import default

AT_ALL_CASES = ("frozen_random_encoder", "prior", "pooled_encoder", "transfer_nested", "scratch_slow", "scratch_fast")
"""Arms that are not compared between sizes."""


def get_config(pair: str = "synthetic:blobs?seed=1,synthetic:blobs") -> ConfigDict:
    """The study; `pair` is SOURCE,TARGET."""
    source, comma, target = pair.partition(",")
    if not (source and comma and target):
        raise ValueError(f"{pair!r}: give SOURCE,TARGET, two folders for instance")
    config = default.get_config()
    config.name = "does this start help?"
    config.num_seeds = 8
    config.looks = (8, 16)
    config.vary = "init,order,subset"
    config.source.data, config.target.data = source, target
    config.target.train_cases = (4, 8, 16, 0)
    config.optim.schedule = "constant"
    config.optim.lr_grid = (3e-4, 1e-3, 3e-3, 1e-2)
    config.optim.lr_seeds = (9001,)
    config.optim.lr_sizes = "largest"
    config.train.average = 0.2
    config.train.steps = 1000
    steps = config.train.get_oneway_ref("steps")  # also of another number on a command line
    config.train.log_every = steps // 100
    config.train.eval_every = steps // 50
    config.train.save_every = steps // 4
    config.pretrain.eval_every = steps // 10
    config.evaluate.val_overlap = 0.0
    config.analysis.half = True
    config.analysis.sizes = "largest"
    config.arms = default.pick_arms(
        *("scratch", "transfer", "scratch_b", "self_transfer"), *AT_ALL_CASES, config=config
    )
    config.arms.self_transfer.train_cases = (4, 8)  # the cases of the others are its source
    for name in AT_ALL_CASES:
        config.arms[name].train_cases = (0,)
    return config
