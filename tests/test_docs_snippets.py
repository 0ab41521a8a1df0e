"""Every Python block of the documentation runs, in the order of its page, with what the text before it speaks of."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import types
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest

from tests.conftest import ROOT

matplotlib.use("Agg")

CONFIG = "from configs import default\nconfig = default.get_config()\n"
ARRAYS = """
import numpy as np
rng = np.random.default_rng(0)
"""
EXPORTED = """
from pathlib import Path

import jaxseg
from jaxseg.study import export
study = jaxseg.load("runs/quickstart")
for kind in ("safetensors", "jax"):
    export.export_network(study, study.arm("transfer"), seed=0, kind=kind, output=Path("exported"))
"""
GIVEN = {
    "README.md": CONFIG,
    "docs/export.md": EXPORTED,
    "docs/claims.md": CONFIG,
    "docs/analysis.md": ARRAYS
    + """
x, y, runs = rng.normal(size=(50, 4)), rng.normal(size=(50, 3)), rng.normal(size=(3, 50, 4))
start, end = rng.normal(size=(2, 3, 3, 2, 5))
label_maps, classes = rng.integers(0, 3, (3, 60)), 3
""",
    "docs/evaluation.md": ARRAYS
    + """
pred, ref = np.zeros((2, 9, 9, 9), bool)
pred[2:6, 2:6, 2:6] = ref[3:7, 2:6, 2:6] = True
probability = rng.random(ref.shape)
differences = rng.normal(0.02, 0.01, (8, 12))
""",
    "docs/import.md": CONFIG,
    "docs/networks.md": CONFIG
    + """
import jax, jax.numpy as jnp
from jaxseg.settings import parse
from jaxseg.models import make_model
config.model.ndim, config.model.widths = 2, (2, 4)
config.target.patch = config.source.patch = (8, 8)
model, image = make_model(parse(config).model, classes=3), jnp.zeros((1, 8, 8, 1))
params = model.init(jax.random.key(0), image)["params"]
""",
}
"""What the pages' text takes as given: a config, arrays, a network, exports."""
STUDIES = ("quickstart", "mine", "hippocampus", "nerve", "ed", "es")
"""Workdirs in runs/ that the pages speak of."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PAGES = [
    str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if blocks(page)
]


@pytest.fixture(scope="module")
def reader(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader would have it: finished studies and an image."""
    folder = tmp_path_factory.mktemp("reader")
    for name in STUDIES:
        shutil.copytree(tiny_study, folder / "runs" / name)
    image = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "image.nii.gz")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # Flax looks up where a class was made
    exec(GIVEN.get(page, ""), vars(module))
    for number, block in enumerate(blocks(ROOT / page)):
        if "import torch" in block and importlib.util.find_spec("torch") is None:
            continue
        exec(compile(block, f"{page}, block {number}", "exec", dont_inherit=True), vars(module))


def test_nothing_is_given_to_pages_that_need_nothing() -> None:
    assert {page for page, given in GIVEN.items() if given} <= {*PAGES}
