"""Tables of every config field, read from configs/default.py, so that they cannot drift: name, default, comment."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

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


class ConfigFields(SphinxDirective):
    """`{config-fields} optim`: a table of the fields below a prefix; without a prefix those of the top level."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, as parsed Markdown."""
        prefix = f"{self.arguments[0]}." if self.arguments else ""
        self.env.note_dependency(str(SOURCE))
        chosen = [field for field in read_fields(SOURCE.read_text()) if _belongs(field.name, prefix)]
        if not chosen:
            raise self.error(f"configs/default.py declares no field below {prefix!r}")
        rows = ["| field | default | |", "| --- | --- | --- |"]
        for field in chosen:
            default = f"`{field.default}`" if field.default else ""
            rows.append(f"| `{field.name}` | {default} | {_cell(field.comment)} |")
        return self.parse_text_to_nodes(StringList(rows, source=str(SOURCE)))  # type: ignore[arg-type]


def _belongs(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix else "." not in name


def _cell(comment: str) -> str:
    """A comment as the cell of a Markdown table."""
    return comment.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("config-fields", ConfigFields)
    return {"version": "1", "parallel_read_safe": True}
