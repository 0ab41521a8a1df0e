"""Copies what a finished study shows into a folder small enough to keep: page, tables, config and record.

    python -m tools.publish_study runs/NAME docs/studies/NAME [--without_page]

Tables above 100 kB (`--compress_above`) are compressed; pandas reads them as they are. Networks and prepared images
stay behind. The page is written anew from what is kept, without the machine's own settings (`runtime`); studies that
are one point of a larger question can do without it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
from pathlib import Path

from configs import default
from jaxseg import manifest, settings
from jaxseg.report import write_report


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
        made = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        made["runtime"] = settings.to_dict(default.get_config())["runtime"]
        (bare / "config.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
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
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Says how much was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--compress_above", type=int, default=100_000, help="bytes from which a table is compressed")
    parser.add_argument("--without_page", action="store_true", help="keep tables, config and record alone")
    asked = parser.parse_args()
    page, limit = not asked.without_page, asked.compress_above
    size = publish(asked.workdir, asked.folder, page=page, compress_above=limit)
    print(f"{asked.folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
