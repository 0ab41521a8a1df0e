"""Every named arm on the hippocampus with eight training cases, from a source of another organ and species.

    python -m launch.study --config=configs/hippocampus_arms.py --workdir=runs/hippocampus_arms \
        --config.target.data=PATH/hippocampus_mr --config.source.data=PATH/rodent_brain_epi

Four seeds that each draw their own eight cases, somewhat more than an hour on two CPU cores. The rate is constant
after the warm-up, so that steps to target are not pulled together by a schedule that flattens every curve at its end.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """The study."""
    config = default.get_config()
    config.name = "hippocampus_arms"
    config.num_seeds = 4
    config.vary = "init,order,subset"
    config.target.data = "hippocampus_mr"
    config.target.train_cases = (8,)
    config.target.val_cases = 4
    config.source.data = "rodent_brain_epi"
    config.source.val_cases = 4
    for task in (config.target, config.source):
        task.augment.flip = (0,)
        task.augment.gamma = 0.2
        task.augment.brightness = 0.2
    config.model.widths = (8, 16, 32)
    config.optim.lr = 2e-3
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 40
    config.train.batch = 1
    config.train.steps = 800
    config.train.log_every = 20
    config.train.eval_every = 40
    config.train.save_every = 200
    config.pretrain.steps = 600
    config.pretrain.min_loaded = 0.9
    config.arms = default.pick_arms(*default.named_arms(config), config=config)
    config.evaluate.tolerance_mm = 1.0
    return config
