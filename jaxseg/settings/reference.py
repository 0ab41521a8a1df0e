"""The reference of settings: every field that a config declares, as the schema has it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxseg.settings import schema, task_schema
from jaxseg.settings.kinds import allowed, choices, hints, written


class Field(NamedTuple):
    """One field of a config."""

    name: str
    """Dotted, as on the command line but for `--config.`; `target.…` stands for `source.…` too."""
    default: Any
    """As a config holds it; None where there is no default."""
    allowed: str
    """What its type restricts it to; empty where it restricts nothing."""
    choices: str
    """Names that it may have; empty where there are no such choices."""
    comment: str


def fields() -> list[Field]:
    """Every field of a study, in the schema's order."""
    return list(_fields(schema.StudySettings, "", _comments()))


def _comments() -> dict[tuple[str, str], str]:
    """What stands below each field of the schema, by class and field."""
    found = {}
    for node in (*ast.parse(inspect.getsource(schema)).body, *ast.parse(inspect.getsource(task_schema)).body):
        body = node.body if isinstance(node, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                name, text = ast.unparse(field.target), ast.literal_eval(below.value)
                found[node.name, name] = " ".join(text.split())  # type: ignore[attr-defined]
    return found


def _fields(cls: type, prefix: str, comments: dict[tuple[str, str], str]) -> Iterator[Field]:
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, kind in hints(cls).items():
        if name == "arms":
            arm = list(_fields(schema.ArmSettings, "arms.NAME.", comments))
            yield from (field for field in arm if field.name.count(".") == 2 and field.name != "arms.NAME.name")
        elif dataclasses.is_dataclass(kind):
            if name != "source":
                yield from _fields(kind, f"{prefix}{name}.", comments)  # type: ignore[arg-type]
        else:
            reader, default = written(kind), defaults[name]
            default = None if default is dataclasses.MISSING else default if reader is None else reader.default
            (owner,) = (base for base in cls.__mro__ if name in inspect.get_annotations(base))
            texts = "; ".join(part.text for part in allowed(kind))
            names = ", ".join(map(str, choices(kind)))
            yield Field(f"{prefix}{name}", default, texts, names, comments[owner.__name__, name])
