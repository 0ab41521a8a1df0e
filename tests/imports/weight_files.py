"""Files of weights as others write them, and files that only pretend to be."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.imports.conversion import network_shapes
from jaxseg.settings import parse_model
from jaxseg.streams import host_rng
from tests.conftest import ROOT

MODEL = {"ndim": 2, "widths": (2, 4), "norm": "batch"}
"""The network of the rules in docs/import.md, as the tiny study can start from it."""


def documented_rules(folder: Path) -> Path:
    """The rules that docs/import.md shows, as a file."""
    page = (ROOT / "docs" / "import.md").read_text()
    (rules,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def convert" in block)
    path = folder / "rules.py"
    path.write_text(rules)
    return path


def foreign_tensors(classes: int = 3, channels: int = 1) -> dict[str, np.ndarray]:
    """Tensors with the names and the layout that those rules read."""
    rng, tensors = host_rng(0, "foreign"), {}
    for path, shape in network_shapes(parse_model(MODEL), channels=channels, classes=classes).items():
        *where, kind = path.split("/")
        kinds = {"scale": "weight", "kernel": "weight", "running_variance": "running_var"}
        if where == ["head"]:
            name, shape = f"out.{kinds.get(kind, kind)}", ((1, 1, *shape) if kind == "kernel" else shape)
        else:
            part, level, layer = where
            of = "conv" if kind == "kernel" else "norm"
            name = f"{'down' if part == 'encoder' else 'up'}{level[-1]}.{of}{layer[-1]}.{kinds.get(kind, kind)}"
        array = rng.uniform(0.5, 1.0, shape).astype(np.float32)
        tensors[name] = np.moveaxis(array, (-2, -1), (1, 0)) if kind == "kernel" else array
        if kind == "running_mean":
            tensors[name.replace("running_mean", "num_batches_tracked")] = np.array(7)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A safetensors file."""
    from safetensors.numpy import save

    path.write_bytes(save({name: np.asarray(array, order="C") for name, array in tensors.items()}))
    return path


class Code:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


class Command(Code):
    """Pickles as a command of the shell that leaves a trace."""

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.trace}",)


def zipped(path: Path, content: Any, *, compression: int = zipfile.ZIP_STORED, extra: tuple[str, ...] = ()) -> Path:
    """A file as torch.save lays it out, with any pickle in it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        archive.writestr("weights/version", "3\n")
        for name in extra:
            archive.writestr(f"weights/{name}", bytes(10_000))
    return path


def saved(path: Path, content: Any, **options: Any) -> Path:
    """A file that torch.save wrote."""
    import torch

    held = io.BytesIO()
    torch.save(content, held, **options)
    path.write_bytes(held.getvalue())
    return path
