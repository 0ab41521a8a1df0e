"""Copies what a finished study found into a folder small enough to keep: its config, record, results and figures.

    python -m tools.publish_study runs/NAME docs/studies/NAME [--figures=differences,learning_curves]

The tables that are kept (`TABLES`) say what was found; those that it was found from stay in the workdir, as do
networks and images. From what is kept verdicts over several studies are drawn (`launch.verdicts`, `tools.draw_claims`),
and seeds that are trained again are compared (`tools.rerun_study`). The config makes all the rest anew. PATH stands for
the folders of this machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from configs import default
from jaxseg import settings
from jaxseg.types import UserError

TABLES = (
    *("claims", "test_groups", "summary", "seed_scores", "comparisons", "ranking", "reuse", "speed"),
    *("ensemble_summary", "ensemble_comparisons", "external_summary", "external_comparisons"),
    *("detection", "detection_differences"),
)
"""Tables that are kept, where the study has them."""
FIGURES = ("differences", "ranking")
"""Figures that are kept if no others are asked for: those of a study's main results."""
ALL = 10**9
"""Stands for all training cases where sizes are put in order."""

PLACE = re.compile(r"(?<![^:=+&,])/(?:[^/:=+&,]+/)*(?=[^/:=+&,])")
"""The folders of an absolute path, which may stand alone or within a value that names several (`A+B`, `given:A`)."""


def publish(workdir: Path, folder: Path, figures: tuple[str, ...]) -> int:
    """Fills the folder anew and returns its bytes.

    Raises:
        UserError: If the workdir holds no study that was judged, the folder something else, or a figure is missing.
    """
    for needed in ("config.json", "study.json", "results/claims.csv"):
        if not (workdir / needed).exists():
            raise UserError(f"no {needed} in {workdir}: give the workdir of a finished study")
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise UserError(f"{folder} holds something else than a published study; give another folder")
    found = {name: largest(workdir / "figures", name) for name in figures or FIGURES}
    if missing := [name for name in figures if found[name] is None]:
        raise UserError(f"no figure {', '.join(missing)} in {workdir / 'figures'}; its file names say which there are")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    (folder / "config.json").write_text(config_without_machine(workdir), encoding="utf-8")
    record = json.loads((workdir / "study.json").read_text(encoding="utf-8"))
    (folder / "study.json").write_text(json.dumps(_without_places(record)) + "\n", encoding="utf-8")
    for name in TABLES:
        if (workdir / "results" / f"{name}.csv").exists():
            shutil.copyfile(workdir / "results" / f"{name}.csv", folder / "results" / f"{name}.csv")
    for name, path in found.items():
        if path is not None:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "figures" / f"{name}.svg")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def largest(figures: Path, name: str) -> Path | None:
    """A figure, of several training set sizes that of the largest; None where the page has none."""
    of_sizes = {int(path.stem.rpartition("_n")[2]) or ALL: path for path in figures.glob(f"{name}_n*.svg")}
    whole = figures / f"{name}.svg"
    return of_sizes[max(of_sizes)] if of_sizes else whole if whole.exists() else None


def config_without_machine(workdir: Path) -> str:
    """The text of a study's config with the defaults of `runtime`, and with PATH for the folders of this machine."""
    made = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    made["runtime"] = settings.to_dict(default.get_config())["runtime"]
    return json.dumps(_without_places(made), indent=1) + "\n"


def _without_places(value: Any) -> Any:
    """The same tree, in which absolute paths are PATH and their last part."""
    if isinstance(value, dict):
        return {name: _without_places(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return PLACE.sub("PATH/", value) if isinstance(value, str) else value


def main() -> None:
    """Says how much was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--figures", default="", help=f"names in figures/, by commas, instead of {', '.join(FIGURES)}; ending left out"
    )
    asked = parser.parse_args()
    try:
        size = publish(asked.workdir, asked.folder, tuple(filter(None, asked.figures.split(","))))
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"{asked.folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
