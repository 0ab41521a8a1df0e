"""The training setting of Karimi, Warfield and Gholipour (arXiv:2006.00356), as far as its description goes.

    python -m launch.study --config=configs/paper.py --workdir=runs/paper \
        --config.target.data=PATH/TARGET_TASK --config.source.data=PATH/SOURCE_TASK

Their network, foreground soft Dice, Adam at a rate of 1e-4 that is cut by a tenth whenever validation DSC falls below
0.995 of its last value, batches of one random crop of 96^3 voxels, test windows at a stride of 24 voxels. The number of
steps, the augmentation and the normalization are not in the description: here they are jaxseg's. On two CPU cores a
step of one seed takes seconds: this preset is for accelerators.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arms: str = "scratch,transfer,frozen_random_encoder,frozen_pretrained_encoder") -> ConfigDict:
    """The study; `arms` picks from the named arms."""
    config = default.get_config()
    config.name = "paper"
    config.num_seeds = 8  # below eight seeds there is no verdict
    for task in (config.source, config.target):
        task.patch = (96, 96, 96)
        task.foreground = 0.0  # crops anywhere
    config.model.name = "multiscale_fcn"
    config.model.widths = (14, 28, 56, 112)
    config.model.norm = "none"
    config.model.dropout = 0.1
    config.optim.name = "adam"
    config.optim.lr = 1e-4
    config.optim.schedule = "plateau"
    config.optim.warmup_steps = 0
    config.loss.name = "dice"
    config.loss.smooth = 1e-5
    config.train.batch = 1
    config.train.steps = 10_000
    config.train.log_every = 50
    config.train.eval_every = 200
    config.train.save_every = 1000
    config.pretrain.steps = 10_000
    config.arms = default.pick_arms(*arms.split(","), config=config)
    config.evaluate.overlap = 0.75  # a stride of 24 voxels
    config.evaluate.window_batch = 1
    return config
