"""Tables as text and as LaTeX."""

import math

import pandas as pd

from jaxseg.study.score import formats


def test_text_is_aligned():
    table = pd.DataFrame({"arm": ["scratch", "b"], "n": [8, 16], "mean": [0.12345, math.nan], "ok": [True, False]})
    assert formats.to_text(table).splitlines() == [
        "arm       n   mean  ok",
        "scratch   8  0.123  yes",
        "b        16      -  no",
    ]


def test_latex_is_escaped_and_ruled():
    table = pd.DataFrame({"arm_a": ["a_b & 50%"], "diff": [-0.5], "p": [math.nan], "n": [8]})
    text = formats.to_latex(table, caption="Gains_1", label="tab:gains", digits=2)
    assert text.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Gains\_1}",
        r"\label{tab:gains}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"arm\_a & diff & p & n \\",
        r"\midrule",
        r"a\_b \& 50\% & $-$0.50 & -- & 8 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert formats.to_latex(table).startswith(r"\begin{tabular}")
