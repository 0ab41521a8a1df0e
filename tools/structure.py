"""Counts how the code is laid out: files, lines, words, long functions, and what imports what.

    python -m tools.structure
    python -m tools.structure BEFORE AFTER

Each folder is a checkout; without any it is the one that this program is in. Prints a Markdown table, a column a
checkout. Arrows are imports between two modules (or two rooms: the files and folders right inside a package), floors
the longest chain of imports, where modules or rooms that import each other in a circle share a floor. Fan-out counts
the modules of jaxseg that a module imports.
"""

from __future__ import annotations

import argparse
import ast
import functools
from collections.abc import Mapping
from pathlib import Path

FOLDERS = (
    "jaxseg",
    "jaxseg/study",
    "jaxseg/report",
    "launch",
    "configs",
    "benchmarks",
    "simulated",
    "tools",
    "tests",
    "docs",
)
LONG = 60
"""Lines of a function."""
Arrows = Mapping[str, set[str]]


def functions(tree: ast.AST) -> list[int]:
    """Lines of every function of a module."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.end_lineno or node.lineno) - node.lineno + 1 for node in ast.walk(tree) if isinstance(node, kinds)]


def of_folder(folder: Path) -> dict[str, int]:
    """Counts of a folder's Python files and pages."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))]
    lengths = [len(text.splitlines()) for text in texts]
    pages = [path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))]
    return {
        "files": len(texts),
        "lines": sum(lengths),
        "files over 400 lines": sum(length > 400 for length in lengths),
        f"functions over {LONG} lines": sum(n > LONG for text in texts for n in functions(ast.parse(text))),
        "words in pages": sum(len(page.split()) for page in pages),
    }


def modules(root: Path) -> dict[str, Path]:
    """The modules of jaxseg by their dotted names; a package stands for its `__init__`."""
    found = {}
    for path in sorted((root / "jaxseg").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(root: Path) -> Arrows:
    """The modules of jaxseg that each of its modules imports. A name of a package counts as the package itself."""
    known = modules(root)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                    base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
                parts = {f"{base}.{alias.name}" for alias in node.names}
                used |= {part if part in known else base for part in parts}
        found[name] = (used & known.keys()) - {name}
    return found


def inside(all_arrows: Arrows, package: str) -> Arrows:
    """Arrows between the modules of one package; its own `__init__`, which gathers names, is left out."""
    own = {name for name in all_arrows if name.startswith(f"{package}.")}
    return {name: all_arrows[name] & own for name in own}


def by_room(of_modules: Arrows, package: str) -> Arrows:
    """Arrows between what stands right inside a package: a file, or a folder as a whole."""
    depth = package.count(".") + 2

    def room(name: str) -> str:
        return ".".join(name.split(".")[:depth])

    found: dict[str, set[str]] = {room(name): set() for name in of_modules}
    for name, used in of_modules.items():
        found[room(name)] |= {room(other) for other in used} - {room(name)}
    return found


def floors(of_modules: Arrows) -> int:
    """Members of the longest chain of imports; those of a circle are counted once."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = of_modules[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    reach = {name: reached(name) for name in of_modules}

    @functools.cache
    def height(name: str) -> int:
        circle = {other for other in reach[name] if name in reach[other]} | {name}
        below = set().union(*(of_modules[member] for member in circle)) - circle
        return 1 + max(map(height, sorted(below)), default=0)

    return max(map(height, of_modules), default=0)


def layout(root: Path) -> dict[str, str]:
    """What of a checkout is counted, and the counts."""
    found = {}
    for folder in FOLDERS:
        for what, count in of_folder(root / folder).items():
            found[f"{folder}: {what}"] = f"{count:,}"
    of_all = arrows(root)
    for package in ("jaxseg.study", "jaxseg.report"):
        of_modules = inside(of_all, package)
        for what, some in (("modules", of_modules), ("rooms", by_room(of_modules, package))):
            total = sum(map(len, some.values()))
            found[f"{package}: {what}; arrows; floors"] = f"{len(some)}; {total}; {floors(some)}"
    most = max(of_all, key=lambda name: (len(of_all[name]), name))
    found["jaxseg: largest fan-out"] = f"{len(of_all[most])} ({most.removeprefix('jaxseg.')})"
    return found


def main() -> None:
    """Prints the table; rows that are 0 everywhere are left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", default=[Path(__file__).parents[1]])
    asked = parser.parse_args()
    columns = [layout(root) for root in asked.checkouts]
    print(f"| counted | {' | '.join(root.resolve().name for root in asked.checkouts)} |")
    print(f"|{' --- |' * (1 + len(columns))}")
    for what in columns[0]:
        if any(column[what] != "0" for column in columns):
            print(f"| {what} | {' | '.join(column[what] for column in columns)} |")


if __name__ == "__main__":
    main()
