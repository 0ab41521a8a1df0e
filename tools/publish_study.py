"""Copies what a finished study shows into a folder small enough to keep: page, tables, config and record.

    python -m tools.publish_study runs/NAME docs/studies/NAME [--without_page | --summary]

Tables above 100 kB (`--compress_above`) are compressed; pandas reads them as they are. Networks and prepared images
stay behind. The page is written anew from what is kept, without the machine's own settings (`runtime`); studies that
are one point of a larger question can do without it. With `--summary` the config, the tables with a study's results
(`SUMMARY`) and the figures of its main results are kept alone: less than a megabyte. The config makes the others again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from configs import default
from jaxseg import manifest, settings
from jaxseg.report import write_report

SUMMARY = ("claims", "comparisons", "ranking", "reuse", "speed", "summary")
"""Tables that hold what a study found, and none of what it was found from."""
FIGURES = ("differences", "ranking")
"""Figures of a study's main results."""

PLACE = re.compile(r"(?<![^:=+&,])/(?:[^/:=+&,]+/)*(?=[^/:=+&,])")
"""The folders of an absolute path, which may stand alone or within a value that names several (`A+B`, `given:A`)."""


def publish_summary(workdir: Path, folder: Path) -> int:
    """Fill the folder anew with the results of a study alone, and return its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    (folder / "config.json").write_text(config_without_machine(workdir), encoding="utf-8")
    found = [workdir / "results" / f"{name}.csv" for name in SUMMARY]
    for path in (*found, *(workdir / "figures" / f"{name}.svg" for name in FIGURES)):
        if path.exists():
            (folder / path.relative_to(workdir)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(workdir))
    return size_of(folder)


def config_without_machine(workdir: Path) -> str:
    """The text of a study's config with the defaults of `runtime`, and with PATH for the folders of this machine."""
    made = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    made["runtime"] = settings.to_dict(default.get_config())["runtime"]
    return json.dumps(_without_places(made), indent=1) + "\n"


def _without_places(value: Any) -> Any:
    """The same settings, in which absolute paths are PATH and their last part."""
    if isinstance(value, dict):
        return {name: _without_places(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part) for part in value]
    return PLACE.sub("PATH/", value) if isinstance(value, str) else value


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def publish(workdir: Path, folder: Path, *, page: bool, compress_above: int) -> int:
    """Fills the folder anew and returns its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch)
        for name in ("results", "load_tables"):
            if (workdir / name).exists():  # no load tables where nothing starts from a source network
                shutil.copytree(workdir / name, bare / name)
        if (bare / "load_tables").exists():
            shutil.copytree(bare / "load_tables", folder / "load_tables", ignore=shutil.ignore_patterns(manifest.NAME))
        shutil.copyfile(workdir / "study.json", bare / "study.json")
        (bare / "config.json").write_text(config_without_machine(workdir), encoding="utf-8")
        if page:
            write_report(bare)
        for name in ("config.json", "study.json", *(["report.html"] if page else [])):
            shutil.copyfile(bare / name, folder / name)
    for path in sorted((workdir / "results").glob("*.csv")):
        text = path.read_bytes()
        if len(text) <= compress_above:
            (folder / "results" / path.name).write_bytes(text)
        else:  # no time inside, so that the same table is the same file
            (folder / "results" / f"{path.name}.gz").write_bytes(gzip.compress(text, mtime=0))
    return size_of(folder)


def main() -> None:
    """Says how much was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compress_above", type=int, default=100_000, help="bytes from which a table is compressed")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--without_page", action="store_true", help="keep tables, config and record alone")
    kept.add_argument("--summary", action="store_true", help="keep the config, results and main figures alone")
    asked = parser.parse_args()
    if asked.summary:
        size = publish_summary(asked.workdir, asked.folder)
    else:
        page, limit = not asked.without_page, asked.compress_above
        size = publish(asked.workdir, asked.folder, page=page, compress_above=limit)
    print(f"{asked.folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
