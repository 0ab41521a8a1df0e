"""Tables of every config field, read from the schema: name, default, what is allowed, what it does."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from jaxseg.settings import reference


class ConfigFields(SphinxDirective):
    """`{config-fields} optim`: a table of the fields below a prefix; without a prefix those of the top level."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, as parsed Markdown."""
        prefix = f"{self.arguments[0]}." if self.arguments else ""
        self.env.note_dependency(str(reference.schema.__file__))
        chosen = [field for field in reference.fields() if _belongs(field.name, prefix)]
        if not chosen:
            raise self.error(f"the schema has no field below {prefix!r}")
        rows = ["| field | default | allowed | |", "| --- | --- | --- | --- |"]
        for field in chosen:
            default = "" if field.default is None else f"`{field.default!r}`"
            rows.append(f"| `{field.name}` | {default} | {_cell(field.allowed)} | {_cell(field.comment)} |")
        return self.parse_text_to_nodes(StringList(rows, source="jaxseg/settings/schema.py"))  # type: ignore[arg-type]


def _belongs(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix else "." not in name


def _cell(comment: str) -> str:
    """A comment as the cell of a Markdown table."""
    return comment.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("config-fields", ConfigFields)
    return {"version": "1", "parallel_read_safe": True}
