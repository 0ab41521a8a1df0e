"""The notebook of the documentation runs on a finished study, in CI on the quickstart's."""

from __future__ import annotations

import json

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.conftest import ROOT


def run_notebook(workdir, monkeypatch, tmp_path):
    """Runs the cells one after another in one namespace, as a kernel does."""
    monkeypatch.setenv("JAXSEG_WORKDIR", str(workdir))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "docs" / "notebooks" / "analysis.ipynb").read_text())["cells"]
    scope: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
    plt.close("all")
    return scope


def test_the_notebook_runs_and_finds_what_the_tables_hold(tiny_study, monkeypatch, tmp_path):
    scope = run_notebook(tiny_study, monkeypatch, tmp_path)
    assert scope["by_hand"] == pytest.approx(scope["in_table"], rel=1e-6)
    assert scope["dsc"].shape == (2, 2)
