"""Fast multi-seed transfer-learning studies of fully convolutional networks for medical image segmentation.

`load` opens a finished study. The other names are the pure pieces that a study is made of; they know nothing of studies
and can be used on their own. The page "The library in Python" of the documentation shows each of them in use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxseg.analysis.similarity import cka, procrustes, pwcca, svcca
    from jaxseg.inference import make_window_predict
    from jaxseg.losses import make_loss
    from jaxseg.metrics import assd, dsc, hd95, nsd
    from jaxseg.models import make_model
    from jaxseg.optim import freeze_labels, make_optimizer
    from jaxseg.seeds import make_plan, map_seeds
    from jaxseg.study.api import load
    from jaxseg.train import init_state, make_train_step
    from jaxseg.transfer import transfer_params

    __version__: str

__all__ = [
    "__version__",
    "assd",
    "cka",
    "dsc",
    "freeze_labels",
    "hd95",
    "init_state",
    "load",
    "make_loss",
    "make_model",
    "make_optimizer",
    "make_plan",
    "make_train_step",
    "make_window_predict",
    "map_seeds",
    "nsd",
    "procrustes",
    "pwcca",
    "svcca",
    "transfer_params",
]

_HOMES = {
    "analysis.similarity": ("cka", "procrustes", "pwcca", "svcca"),
    "inference": ("make_window_predict",),
    "losses": ("make_loss",),
    "metrics": ("assd", "dsc", "hd95", "nsd"),
    "models": ("make_model",),
    "optim": ("freeze_labels", "make_optimizer"),
    "seeds": ("make_plan", "map_seeds"),
    "study.api": ("load",),
    "train": ("init_state", "make_train_step"),
    "transfer": ("transfer_params",),
}

if not TYPE_CHECKING:  # so that a type checker knows the names above and no others

    def __getattr__(name: str) -> object:
        # On demand: `import jaxseg` takes 20 ms, and with all of the above some seconds (JAX, Orbax, TFDS, pandas).
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("jaxseg")
        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f"jaxseg.{home}"), name)
        raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
