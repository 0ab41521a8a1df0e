"""The smallest study that still has every part: two seeds, three arms, 2-D images of 16 x 16 voxels."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import default
from jaxseg.types import Progress


def tiny_config() -> ConfigDict:
    """A config whose whole study takes seconds; tests change what they need."""
    config = default.get_config()
    config.name = "tiny"
    config.num_seeds = 2
    config.source.data = "synthetic:blobs?n=9&shape=16x16&seed=1&relatedness=0.5"
    config.target.data = "synthetic:blobs?n=10&shape=16x16"
    for task in (config.source, config.target):
        task.patch = (8, 8)
        task.val_cases = 2
        task.test_cases = 2
    config.model.ndim = 2
    set_widths(config, 2, 4)
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 2
    config.train.steps = 8
    config.train.log_every = 2
    config.train.eval_every = 4
    config.train.save_every = 4
    config.pretrain.steps = 8
    config.evaluate.window_batch = 4
    config.report.examples = 1
    config.arms = default.pick_arms("scratch", "transfer", "frozen_random_encoder")
    return config


def set_widths(config: ConfigDict, *widths: int) -> None:
    """Sets the channels of each level, with one convolution a level: what compiles takes a quarter less."""
    config.model.widths = widths
    config.model.blocks, config.model.decoder_blocks = (1,) * len(widths), (1,) * (len(widths) - 1)


def put(where: ConfigDict, path: str, value: object) -> None:
    """Sets a field, declared or not."""
    *parents, name = path.split(".")
    for parent in parents:
        where = where[parent]
    with where.unlocked():
        where[name] = value


def at(where: ConfigDict, path: str) -> object:
    """The field at a dotted path."""
    for name in path.split("."):
        where = where[name]
    return where


def changed(**fields: object) -> ConfigDict:
    """The tiny config with other values; dots are written as two underscores."""
    made = tiny_config()
    for path, value in fields.items():
        put(made, path.replace("__", "."), value)
    return made


def silent(title: str) -> Progress:
    """Progress that nobody watches."""
    return lambda what, done, total, note="", runs=(): None


def get_config() -> ConfigDict:
    """For --config=tests/tiny_study.py."""
    return tiny_config()
