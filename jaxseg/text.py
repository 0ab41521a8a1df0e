"""Numbers and names as a reader wants them: true minus signs, fixed digits, no character that breaks a page."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

MISSING = "\N{EN DASH}"
"""Shown where a number is undefined."""

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"

_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")


def plain(name: object) -> str:
    r"""Return a name without control characters, which XML forbids, and without marks that turn text around.

    Escaping for HTML and SVG is left to the writers of those formats.

    >>> plain("left\x00 ventricle")
    'left� ventricle'
    """
    kept = (
        "\ufffd" if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c in "\ufffe\uffff" else c
        for c in str(name)
        if c not in _BIDI_CONTROLS
    )
    return "".join(kept)


def columns_of(text: str) -> int:
    """Return the width of a text in character cells; wide East Asian characters and emoji take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(name: object, limit: int) -> str:
    """Return a name on one line in at most `limit` character cells, its middle left out where it is longer.

    >>> shorten("frozen_pretrained_encoder", 15)
    'frozen_…encoder'
    """
    text = " ".join(plain(name).split())
    if columns_of(text) <= limit:
        return text
    head, tail = text[: (limit - 1) // 2], text[len(text) - (limit - 1) // 2 :]
    while columns_of(head) + columns_of(tail) + 1 > limit and len(head) > 1:
        head, tail = head[:-1], tail[1:]
    return f"{head}…{tail}"


def number(value: float, digits: int = 3) -> str:
    """Return a number with fixed digits and a true minus sign; NaN becomes a dash.

    >>> number(0.91234), number(-0.5, 1), number(float("nan")), number(float("inf"))
    ('0.912', '−0.5', '–', '∞')
    """
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{abs(value):,.{digits}f}"
    return f"{MINUS}{text}" if value < 0 and float(text.replace(",", "")) != 0 else text


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign always shown.

    >>> signed(0.0214), signed(-0.0214), signed(0.0)
    ('+0.021', '−0.021', '0.000')
    """
    text = number(value, digits)
    shows_sign = math.isfinite(value) and value > 0 and float(text.replace(",", "")) != 0
    return f"+{text}" if shows_sign else text


def interval(low: float, high: float, digits: int = 3) -> str:
    """Return an interval in brackets, or nothing where either limit is undefined.

    >>> interval(-0.004, 0.03), interval(float("nan"), 1.0)
    ('[−0.004, 0.030]', '')
    """
    if math.isnan(float(low)) or math.isnan(float(high)):
        return ""
    return f"[{limit(low, digits)}, {limit(high, digits)}]"


def limit(value: float, digits: int = 3) -> str:
    """Return a limit of an interval; one that would round to zero keeps the digit that shows its side.

    >>> limit(0.0003), limit(-0.0003), limit(0.0)
    ('0.0003', '−0.0003', '0.000')
    """
    rounds_to_zero = math.isfinite(value) and 0 < abs(value) < 0.5 * 10**-digits
    return number(value, math.ceil(-math.log10(abs(value))) if rounds_to_zero else digits)


def significant(value: float) -> str:
    """Return a number to three significant digits, for quantities of any size; whole numbers stay whole.

    >>> significant(0.01234), significant(-12345.0), significant(2.0), significant(float("nan"))
    ('0.0123', '−12,345', '2', '–')
    """
    return number(value, 0) if float(value).is_integer() else _to_three(value)


def significant_interval(low: float, high: float) -> str:
    """Return an interval to three significant digits, or nothing where either limit is undefined.

    >>> significant_interval(-0.0123, 2.0), significant_interval(float("nan"), 1.0)
    ('[−0.0123, 2.00]', '')
    """
    return "" if math.isnan(low) or math.isnan(high) else f"[{_to_three(low)}, {_to_three(high)}]"


def _to_three(value: float) -> str:
    if not math.isfinite(value) or value == 0:
        return number(value, 0)
    return number(value, min(max(2 - math.floor(math.log10(abs(value))), 0), 6))


def ratio(value: float) -> str:
    """Return a ratio with as many digits as it deserves.

    >>> ratio(2.134), ratio(0.4567), ratio(31.2)
    ('2.1', '0.46', '31')
    """
    if not math.isfinite(value):
        return number(value)
    return number(value, 0 if value >= 10 else 1 if value >= 1 else 2)


def p_value(p: float) -> str:
    """Return a p-value to three digits.

    >>> p_value(0.125), p_value(0.0001), p_value(float("nan"))
    ('0.125', '< 0.001', '–')
    """
    return "< 0.001" if p < 0.001 else number(p, 3)


def percent(share: float) -> str:
    """Return a share, such as a confidence level, as a percentage to four digits.

    >>> percent(0.95), percent(1 - 0.0054)
    ('95 %', '99.46 %')
    """
    return f"{100 * share:.4g} %"


def count(value: float) -> str:
    """Return a whole number with separators.

    >>> count(1200000)
    '1,200,000'
    """
    return number(value, 0)


def plural(value: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "seed"), plural(4, "seed")
    ('1 seed', '4 seeds')
    """
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def listing(names: Sequence[object]) -> str:
    """Return names as a sentence's list.

    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    texts = [plain(name) for name in names]
    return " and ".join(texts) if len(texts) < 3 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def duration(seconds: float) -> str:
    """Return a time a person can take in.

    >>> duration(0.42), duration(83), duration(7500)
    ('0.4 s', '1 min 23 s', '2 h 5 min')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def cases(train_cases: int) -> str:
    """Return a training set's size; 0 stands for all training cases.

    >>> cases(8), cases(1), cases(0)
    ('8 cases', '1 case', 'all cases')
    """
    return plural(int(train_cases), "case") if train_cases else "all cases"
