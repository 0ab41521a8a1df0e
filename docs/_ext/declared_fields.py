"""Every config field that configs/default.py declares: name, default, comment."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent.parent.parent / "configs" / "default.py"


class Field(NamedTuple):
    """One declared field."""

    name: str
    """Dotted, as on the command line but for `--config.`."""
    default: str
    comment: str


def read_fields(source: str) -> list[Field]:
    """Fields that `get_config`, `task` and `arm` of a config file declare, in its order.

    A comment stands behind its field, or in lines of its own before it; those of `task` are named `target.…`, which
    stands for `source.…` too, those of `arm` are named `arms.NAME.…`.
    """
    lines = source.splitlines()
    prefixes = {"task": "target.", "arm": "arms.NAME.", "get_config": ""}
    found = []
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in prefixes:
            continue
        for node in function.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if not isinstance(node, ast.Assign) or not isinstance(target, ast.Attribute):
                continue
            default = ast.unparse(node.value)
            dotted = ast.unparse(target).removeprefix("config.")
            if re.match(r"ConfigDict|task\(|pick_arms\(", default) or dotted == "source.data":
                continue  # a group of fields, or another default of one that was declared
            if isinstance(node.value, ast.Name):
                default = ""  # an argument that an arm must be given
            found.append(Field(prefixes[function.name] + dotted, default, _comment(lines, node)))
    return found


def _comment(lines: list[str], node: ast.Assign) -> str:
    assert node.end_lineno is not None
    after = [
        match[1]
        for line in lines[node.lineno - 1 : node.end_lineno]
        if (match := re.search(r"(?:^|\s)#\s(.*)$", line)) is not None
    ]
    before: list[str] = []
    row = node.lineno - 2
    while lines[row].lstrip().startswith("# "):
        before.insert(0, lines[row].strip().removeprefix("# "))
        row -= 1
    return " ".join((*before, *after))
