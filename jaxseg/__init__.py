"""Fast multi-seed transfer-learning studies of fully convolutional networks for medical image segmentation.

`load` opens a finished study. The pure pieces are importable on their own: `jaxseg.losses`, `jaxseg.metrics`,
`jaxseg.seeds.map_seeds`, `jaxseg.optim.make_optimizer`, `jaxseg.transfer.transfer_params`.
"""

from typing import Any

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on demand: importing one pure piece must not import checkpointing, tables and data formats.
    if name == "load":
        from jaxseg.study.api import load

        return load
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("jaxseg")
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")
