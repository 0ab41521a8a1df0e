"""The notebooks of the documentation run, in CI on small studies."""

from __future__ import annotations

import json

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.conftest import ROOT


def run_notebook(name, workdir, monkeypatch, tmp_path):
    """Runs the cells one after another in one namespace, as a kernel does."""
    monkeypatch.setenv("JAXSEG_WORKDIR", str(workdir))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "docs" / "notebooks" / name).read_text())["cells"]
    scope: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
    plt.close("all")
    return scope


def test_the_notebook_of_a_finished_study_finds_what_the_tables_hold(tiny_study, monkeypatch, tmp_path):
    scope = run_notebook("analysis.ipynb", tiny_study, monkeypatch, tmp_path)
    assert scope["by_hand"] == pytest.approx(scope["in_table"], rel=1e-6)
    assert scope["dsc"].shape == (2, 2)


@pytest.mark.slow
def test_the_notebook_of_two_folders_ends_with_the_weights_of_one_network(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAXSEG_SOURCE", "synthetic:blobs?seed=1")
    monkeypatch.setenv("JAXSEG_TARGET", "synthetic:blobs")
    monkeypatch.setenv("JAXSEG_BUDGET", "1min")
    scope = run_notebook("your-folders.ipynb", tmp_path / "work", monkeypatch, tmp_path)
    assert scope["label_map"].shape == scope["case"].label.shape
    assert set(scope["weights"]) == {
        name for name in scope["weights"] if name.startswith(("encoder", "decoder", "head"))
    }
    printed = capsys.readouterr().out
    assert "--config.target.patch=" in printed
    assert "Transfer on synthetic_blobs" in printed
