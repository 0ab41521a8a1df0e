"""A whole small study on built-in synthetic volumes, in a few minutes on two CPU cores.

    python -m launch.study --config=configs/quickstart.py --workdir=runs/quickstart

Four seeds each of a network trained from scratch, one started from weights pretrained on a related synthetic task,
and one whose randomly initialised encoder stays frozen. Ends by printing where report.html is.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The default study, made small."""
    config = default.get_config()
    config.name = "quickstart"
    config.num_seeds = 4
    config.source.data = "synthetic:blobs?n=24&shape=24x24x24&seed=1&relatedness=0.7"
    config.target.data = "synthetic:blobs?n=24&shape=24x24x24"
    for task in (config.source, config.target):
        task.patch = (16, 16, 16)
        task.val_cases = 4
        task.test_cases = 6
    config.model.widths = (8, 16)
    config.train.steps = 200
    config.train.log_every = 10
    config.train.eval_every = 20
    config.train.save_every = 100
    config.pretrain.steps = 200
    config.arms = default.pick_arms("scratch", "transfer", "frozen_random_encoder")
    config.evaluate.tolerance_mm = 1.0
    return config
