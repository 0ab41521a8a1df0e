"""Formats tables as text for a terminal and as LaTeX for a paper."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd


def _cell(value: object, digits: int, missing: str) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return missing if math.isnan(value) else f"{value:.{digits}f}"
    return str(value)


def _holds_numbers(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def to_text(table: pd.DataFrame, *, digits: int = 3) -> str:
    """Formats a table as aligned text: numbers right with fixed digits, words left, and dashes if undefined."""
    columns = []
    for name in table.columns:
        cells = [str(name), *(_cell(v, digits, "-") for v in table[name])]
        width = max(map(len, cells))
        right = _holds_numbers(table[name])
        columns.append([c.rjust(width) if right else c.ljust(width) for c in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


_LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{c: "\\" + c for c in "&%$#_{}"},
}


def to_latex(table: pd.DataFrame, *, caption: str = "", label: str = "", digits: int = 3) -> str:
    """Formats a table in LaTeX with the rules of `booktabs`; text is escaped and undefined numbers are dashes.

    It is written out here because pandas's own writer needs its HTML styler.

    Args:
        table: Any table of this package.
        caption: A caption, which puts the tabular in a `table` float.
        label: Label of the float.
        digits: Digits of numbers that are not whole.
    """

    def escape(text: str) -> str:
        return "".join(_LATEX.get(c, c) for c in text)

    align = "".join("r" if _holds_numbers(table[c]) else "l" for c in table.columns)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(escape(str(c)) for c in table.columns) + r" \\"]
    lines.append(r"\midrule")
    for values in table.itertuples(index=False, name=None):
        cells = (
            _cell(v, digits, "--").replace("-", "$-$", 1)
            if isinstance(v, float) and v < 0
            else escape(_cell(v, digits, "--"))
            for v in values
        )
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption:
        name = [rf"\label{{{label}}}"] if label else []
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", *name, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"
