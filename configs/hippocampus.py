"""Transfer to a folder in Medical Segmentation Decathlon layout, set up for small 3-D MR volumes.

    python -m launch.study --config=configs/hippocampus.py --workdir=runs/hippocampus \
        --config.target.data=PATH/Task04_Hippocampus --config.source.data=PATH/OTHER_TASK

Scratch alone, which needs no source (four seeds x 1,500 steps take about 20 minutes on two CPU cores; a random fifth
held out): `--config=configs/hippocampus.py:scratch`.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arms: str = "scratch,transfer,frozen_random_encoder,frozen_pretrained_encoder") -> ConfigDict:
    """The study; `arms` picks from the named arms."""
    config = default.get_config()
    config.name = "hippocampus"
    config.num_seeds = 4
    config.target.data = "Task04_Hippocampus"
    # A larger rate than the default, and no augmentation: for so few steps both gain accuracy here (docs/accuracy.md).
    config.optim.lr = 3e-3
    config.train.steps = 1500
    config.train.log_every = 30
    config.train.eval_every = 150
    config.train.save_every = 300
    config.pretrain.steps = 1500
    config.arms = default.pick_arms(*arms.split(","), config=config)
    config.evaluate.tolerance_mm = 1.0
    return config
