"""Names that come from data: valid names of cases, groups, labels and tasks.

Whoever made a folder or a TFDS dataset chose its names, and a study writes them to files, tables, pages and terminals.
Therefore they are checked once, where they enter. A name is refused, never altered: a table that differs from the data
is worse than a message. The one change is to composed Unicode (NFC), because macOS stores accents apart from their
letters and the same name would differ between a file and `dataset.json`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from jaxseg.types import UserError

LONGEST = 240
"""Longest name in bytes of UTF-8. File systems allow 255, and predictions need room for ending and channel number."""

# Characters that reverse or hide the text after them, so that a terminal or a page shows another name.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def normal(name: str) -> str:
    """Return the name in composed Unicode, by which names from files and from JSON are matched."""
    return unicodedata.normalize("NFC", name)


def shown(name: str, most: int = 80) -> str:
    r"""Return any name as printable text, shortened in the middle.

    >>> shown("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 4 :]}"


def several(found: Sequence[str], most: int = 5) -> str:
    """Join names to one line; of many names, only the first few are shown."""
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(shown(name) for name in found[:most]) + more


def problem(name: str, *, file: bool = True) -> str | None:
    """Return why a name cannot be used; None if it can.

    Args:
        name: Name of a case, group, label, channel or task.
        file: Whether files are named by it, as by the name of a case. Other names may contain a slash, such as the
            label `prostate/uterus` of a public set, but may not read as a path to somewhere else.
    """
    if not name.strip():
        return "is empty"
    for character in name:
        kind = unicodedata.category(character)
        if kind == "Cs":
            return "is not valid UTF-8"
        if kind in ("Cc", "Zl", "Zp") or character in _DIRECTIONS:
            return f"holds the control character {character.encode('unicode_escape').decode()}"
    if file and ("/" in name or "\\" in name):
        return "holds a path separator; files are named by it"
    if file and name.startswith("."):
        return "begins with a dot; files named by it would be hidden, or lie in another folder"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "reads as a path to another folder"
    if len(name.encode()) > LONGEST:
        return f"is {len(name.encode())} bytes long; at most {LONGEST} are allowed"
    return _formula(name)


def _formula(name: str) -> str | None:
    """Spreadsheets run a cell that begins like a formula; a plain number such as -5 or +1.5 is no formula."""
    first = unicodedata.normalize("NFKC", name.lstrip()[0])  # full-width signs count too
    if first not in "=+-@" or re.fullmatch(r"[+-]?[0-9]+([.][0-9]+)?", name):
        return None
    return f"begins with {first}, as a formula does: a spreadsheet that opens the tables would run it"


def check(name: str, what: str, where: object, *, file: bool = False, mend: str = "Rename it there.") -> str:
    """Return a name in composed Unicode.

    Args:
        name: Name as it stands in the data.
        what: Kind of the name for messages, such as `the label`.
        where: Where the name was found: a file or a `data` string.
        file: See `problem`.
        mend: Advice for the message.

    Raises:
        UserError: The name cannot be used.
    """
    reason = problem(name, file=file)
    if reason is not None:
        raise UserError(f"{where}: {what} '{shown(name)}' cannot be used, because it {reason}. {mend}")
    return normal(name)
