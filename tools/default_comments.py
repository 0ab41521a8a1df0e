"""Writes the comments of configs/default.py from the schema, so that a setting is explained in one place.

    python -m tools.default_comments [--check]

With --check nothing is written, and the exit status is 1 where a comment is not the schema's.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

from jaxseg.settings import reference

DEFAULT = Path(__file__).parent.parent / "configs" / "default.py"
PREFIXES = {"task": "target.", "arm": "arms.NAME.", "get_config": ""}
"""What stands in front of the fields that each function declares."""
WIDTH = 120


def declared(statement: ast.stmt, prefix: str) -> str:
    """The name of the field that a statement declares; empty for any other statement."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    return prefix + ast.unparse(target).removeprefix("config.") if isinstance(target, ast.Attribute) else ""


def commented(source: str) -> str:
    """A config file with the schema's comment at each field that it declares: behind it, or before where it is long."""
    known = {field.name: field for field in reference.fields()}
    lines = source.splitlines()
    for function in reversed(ast.parse(source).body):
        if not isinstance(function, ast.FunctionDef) or function.name not in PREFIXES:
            continue
        for statement in reversed(function.body):
            field = known.get(declared(statement, PREFIXES[function.name]))
            if field is None:
                continue
            first, last = statement.lineno - 1, statement.end_lineno
            while lines[first - 1].lstrip().startswith("# "):
                first -= 1
            code = f"    {ast.unparse(statement).replace(chr(39), chr(34))}"
            text = field.comment.removesuffix(".") + (f" [{field.choices}]" if field.choices else "")
            line = f"{code}  # {text}"
            above = [f"    # {part}" for part in textwrap.wrap(text, WIDTH - 6)]
            lines[first:last] = [line] if len(line) <= WIDTH else [*above, code]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes or checks."""
    source = DEFAULT.read_text(encoding="utf-8")
    made = commented(source)
    if "--check" in sys.argv[1:]:
        return int(made != source)
    DEFAULT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
