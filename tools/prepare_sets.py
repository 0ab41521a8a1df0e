"""Prepares every set of a folder of image sets and prints what it took, one row a set.

python -m tools.prepare_sets ../shared/data
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from configs import default
from jaxseg import data, settings


def row(folder: Path, store_dir: Path) -> str:
    """One set, prepared with the default settings and drawn."""
    made = default.get_config()
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    made.model.ndim = 2 if described.get("tensorImageSize") == "2D" else 3
    for task in (made.source, made.target):
        task.data, task.patch = str(folder), (32,) * made.model.ndim
    began = time.perf_counter()
    prepared = data.prepare_task(settings.parse(made).target, ndim=made.model.ndim, store_dir=store_dir)
    seconds = time.perf_counter() - began
    megabytes = sum(path.stat().st_size for path in prepared.directory.rglob("*") if path.is_file()) / 1e6
    began = time.perf_counter()
    data.write_contact_sheet(prepared, store_dir / f"{folder.name}.png")
    drawing = time.perf_counter() - began
    refused, warnings = len(prepared.report.refused), len(prepared.report.warnings)
    cells = (
        folder.name,
        len(prepared.cases),
        f"{seconds:.1f}",
        f"{megabytes:.1f}",
        refused,
        warnings,
        f"{drawing:.1f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Prints the table."""
    print("| set | cases | s | MB | refused | warnings | picture, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as store_dir:
        for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/dataset.json")):
            print(row(folder, Path(store_dir)), flush=True)


if __name__ == "__main__":
    main()
