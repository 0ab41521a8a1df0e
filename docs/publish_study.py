"""Copies what a finished study shows into a folder small enough to keep: page, tables, config and record.

    python -m docs.publish_study runs/NAME docs/studies/NAME

Tables above 100 kB are compressed; pandas reads them as they are. Networks and prepared images stay behind.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

COMPRESSED_ABOVE = 100_000
"""Bytes of a table."""


def publish(workdir: Path, folder: Path) -> int:
    """Fills the folder anew and returns its bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    for name in ("report.html", "config.json", "study.json"):
        shutil.copyfile(workdir / name, folder / name)
    for path in sorted((workdir / "results").glob("*.csv")):
        text = path.read_bytes()
        if len(text) <= COMPRESSED_ABOVE:
            (folder / "results" / path.name).write_bytes(text)
        else:  # no time inside, so that the same table is the same file
            (folder / "results" / f"{path.name}.gz").write_bytes(gzip.compress(text, mtime=0))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Says how much was kept."""
    workdir, folder = map(Path, sys.argv[1:])
    print(f"{folder}: {publish(workdir, folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
