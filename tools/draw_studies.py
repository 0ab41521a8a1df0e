"""Draws what published studies found: figures of their reports, and the gain of all studies in one.

    python -m tools.draw_studies docs/studies/NAME docs/studies/OTHER
    python -m tools.draw_studies --gains=docs/studies/gains.svg docs/studies/NAME docs/studies/OTHER

Both are made from the tables that `tools.publish_study` kept. Of a report's figures those are taken that carry a
study's main results, into `figures/` of its folder.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxseg.report import write_report
from jaxseg.report.charts.rows import Group
from jaxseg.report.charts.style import arm_styles, to_svg
from jaxseg.report.sections.figures import difference_row, forest_plot
from jaxseg.report.shown import overall_dsc
from jaxseg.study import claims
from tools.published import read_table

TAKEN = ("differences", "learning_curves", "filter_change", "reuse_by_depth")
ARMS = ("transfer", "scratch_b")
WIDTH = 7.2
"""Inches."""
ALL = 10**9
"""Stands for all training cases where sizes are put in order."""


def unpack(folder: Path, into: Path) -> None:
    """A published study as its workdir was: tables not compressed, and all that the page shows."""
    (into / "results").mkdir(parents=True)
    for path in (folder / "results").iterdir():
        text = path.read_bytes()
        (into / "results" / path.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(text) if path.suffix == ".gz" else text
        )
    for name in ("config.json", "study.json"):
        shutil.copyfile(folder / name, into / name)
    if (folder / "load_tables").exists():
        shutil.copytree(folder / "load_tables", into / "load_tables")
    confidence = json.loads((folder / "config.json").read_text(encoding="utf-8"))["analysis"]["confidence"]
    for name, table in claims.shown_tables(into, confidence=confidence).items():
        table.to_csv(into / "results" / f"{name}.csv", index=False)


def largest(figures: Path, name: str) -> Path | None:
    """A figure, of several training set sizes that of the largest; None where the report has none."""
    of_sizes = {int(path.stem.rpartition("_n")[2]) or ALL: path for path in figures.glob(f"{name}_n*.svg")}
    whole = figures / f"{name}.svg"
    return of_sizes[max(of_sizes)] if of_sizes else whole if whole.exists() else None


def draw(folder: Path) -> list[Path]:
    """Draws a published study's figures into its folder; those that it has not are left out."""
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir()
    made = []
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch) / "study"
        unpack(folder, workdir)
        write_report(workdir)
        for name in TAKEN:
            found = largest(workdir / "figures", name)
            if found is not None:
                made.append(folder / "figures" / f"{name}.svg")
                shutil.copyfile(found, made[-1])
    return made


def title(made: dict[str, Any]) -> str:
    """A study's tasks and what else tells it from others, by its config."""
    tasks = " to ".join(Path(made[task]["data"]).name for task in ("source", "target"))
    noise = f", noise {made['target']['noise']:g}" if made["target"].get("noise") else ""
    network = "" if made["model"]["name"] == "unet" else f", {made['model']['name']}"
    seeds = "" if made["num_seeds"] >= 8 else f", {made['num_seeds']} seeds"
    return f"{tasks}{noise}, {made['model']['ndim']}-D, {made['train']['steps']:,} steps{network}{seeds}"


def gains(folders: Sequence[Path]) -> Figure:
    """Transfer less scratch in every study, by training set size, and the placebo: a forest plot."""
    groups = []
    styles = arm_styles(["scratch", *ARMS])
    for folder in folders:
        table = overall_dsc(read_table(folder, "comparisons"))
        table = table[table["arm_a"].isin(ARMS) & (table["arm_b"] == "scratch")]
        rows = []
        for size in sorted(table["train_cases"].unique(), key=lambda size: size or ALL):
            of_size = table[table["train_cases"] == size].to_dict("records")
            for row in sorted(of_size, key=lambda row: ARMS.index(row["arm_a"])):
                name = {"transfer": "transfer", "scratch_b": "placebo"}[row["arm_a"]]
                label = f"{name}, {size or 'all'} cases"
                values = row["mean_diff"], row["ci_low"], row["ci_high"]
                rows.append(difference_row(label, styles[row["arm_a"]], *values))
        groups.append(Group(title(json.loads((folder / "config.json").read_text(encoding="utf-8"))), tuple(rows)))
    return forest_plot(groups, width=WIDTH, xlabel="Difference in DSC to scratch, 95 % for new seeds and cases")


def main() -> None:
    """Says what was drawn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--gains", type=Path, help="draw one figure of all studies there instead")
    asked = parser.parse_args()
    if asked.gains:
        asked.gains.write_text(to_svg(gains(asked.studies)), encoding="utf-8")
        made = [asked.gains]
    else:
        made = [path for folder in asked.studies for path in draw(folder)]
    for path in made:
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
