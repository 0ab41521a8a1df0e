"""Reads the numbers off a page, each with the words that it stands in, and looks for them in a study's tables."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxseg.study import files
from jaxseg.study.claims import rules

NUMBER = re.compile(r"(?<![\w.\u2212-])[+\u2212-]?\d[\d,]*(?:\.\d+)?(?![\w.]*\d)")
TRIPLE = re.compile(
    r"([+\u2212-]?\d[\d,]*(?:\.\d+)?)\S{0,2}(?: DSC| times (?:fewer|more) steps)? "
    r"\[([+\u2212-]?\d[\d,]*(?:\.\d+)?), ([+\u2212-]?\d[\d,]*(?:\.\d+)?)\]"
)
DURATION = re.compile(r"\d+ (?:h|min|s)\b(?: \d+ (?:min|s)\b)?|\d+\.\d s\b")
"""Of stages, in the words of `jaxseg.text.duration`, which its doctest holds."""
VOID = {"meta", "link", "wbr", "br", "hr", "img", "path", "use", "circle", "rect"}
BLOCKS = {"p", "figcaption", "caption", "summary", "tr", "h1", "h2", "h3", "dt", "dd", "text", "li", "div"}

SOURCES = {
    "summary": ("comparisons", "speed", "claims", "summary", "page"),
    "accuracy": (
        *("summary", "comparisons", "seed_scores", "ranking", "claims"),
        *("ensemble_summary", "ensemble_comparisons", "detection", "detection_differences"),
    ),
    "elsewhere": ("summary", "comparisons", "external_summary", "external_comparisons"),
    "training": ("training", "convergence", "rates", "budget_means", "page"),
    "filters": ("layers", "filter_controls", "claims", "page"),
    "representations": ("layers", "similarity_means", "similarity", "layer_similarity", "claims", "page"),
    "variability": ("variability", "page"),
    "examples": ("worst_cases",),
    "loaded": (),
    "provenance": (),
}
"""The tables that each section may take its numbers from, in the order of the page."""

CONSTANTS = {
    **dict.fromkeys(map(str, (rules.DELTA, rules.REUSED, rules.FLOOR_LIMIT, rules.CONTROL_SHARE)), "rule"),
    **dict.fromkeys((f"{100 * level:g}" for level in rules.SPEED_LEVELS), "rule C1"),
    "95": "per cent of the rules' intervals",
    "90": "degrees between two unrelated filters, in the words of a finding and a caption",
    "80": "per cent of draws in which a control must be found, in a caption",
    "0.5": "an AUC of chance, and the largest share of a control, in captions",
    "1.00": "a layer or run against itself, in heatmaps",
}
"""Numbers of the page's own words."""
COUNTED = 64
"""Whole numbers up to this are counts of arms, seeds, layers, runs and the like; tests of the sections hold them."""


@dataclasses.dataclass(frozen=True)
class Words:
    """A piece of text, the section that it stands in, and whether it is part of a figure."""

    section: str
    text: str
    drawn: bool


class Reader(html.parser.HTMLParser):
    """Collects what a page says; ticks of axes, files as they stand, and style sheets are no statements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[Words] = []
        self.section, self.open, self.words = "", list[tuple[str, bool]](), list[str]()
        self.feed(text)
        self._end()

    def _end(self) -> None:
        text = " ".join("".join(self.words).replace("\u200b", "").split())
        if text:
            self.found.append(Words(self.section, text, any(tag == "svg" for tag, _ in self.open)))
        self.words = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in BLOCKS:
            self._end()
        if tag == "section":
            self._end()
            self.section = str(given.get("id"))
        if given.get("aria-label"):
            self.found.append(Words(self.section, str(given["aria-label"]), True))
        silent = tag in ("style", "pre", "head", "nav") or given.get("class") == "tick" or self._is_silent()
        if tag not in VOID:
            self.open.append((tag, silent))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # a mark without words

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID and not any(tag == name for name, _ in self.open):
            return
        if tag in BLOCKS:
            self._end()
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._is_silent():
            # Cells of a row and parts of a sentence stay apart.
            self.words.append(f" {data} " if self.open and self.open[-1][0] in ("td", "th", "small", "b") else data)

    def _is_silent(self) -> bool:
        return bool(self.open) and self.open[-1][1]


def read_words(page: Path) -> list[Words]:
    """Everything that a page says, in order."""
    return Reader(page.read_text(encoding="utf-8")).found


def numeric(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace(",", "").replace("\u2212", "-"))


def are_roundings(shown: str, values: np.ndarray) -> np.ndarray:
    """Whether the page's digits are those of each value, to as many as it gives."""
    digits = len(shown.partition(".")[2])
    return np.abs(numeric(shown) - values) <= 0.5 * 10.0**-digits * (1 + 1e-9)


class Tables:
    """A study's tables, study.json and config.json, as what a page may say of them."""

    def __init__(self, workdir: Path) -> None:
        self.study = json.loads((workdir / "study.json").read_text())
        self.config = json.loads((workdir / "config.json").read_text())
        results = workdir / "results"
        names = {name for of_section in SOURCES.values() for name in of_section}
        paths = {name: files.find_table(results, name) for name in names}
        self.tables = {name: files.read_table(path) for name, path in paths.items() if path is not None}
        pictures = [results / f"{name}.json" for name in ("examples", "analysis")]
        self.pictures = [json.loads(path.read_text()) for path in pictures if path.exists()]
        self.arms = list(self.study["arms"])
        self._names = [(name, re.compile(rf"(?<![\w.]){re.escape(name)}(?![\w])")) for name in self.names()]
        self._values: dict[tuple[object, ...], np.ndarray] = {}
        self._triples: dict[str, np.ndarray] = {}

    def names(self) -> list[str]:
        """Texts in which digits are no numbers: names, words of claims, versions. Long ones first."""
        found: set[str] = set(_texts(self.study)) | set(_texts(self.config))
        for table in self.tables.values():
            for column in table.columns:
                if not pd.api.types.is_numeric_dtype(table[column]):
                    found |= set(map(str, table[column].unique()))
        for layer in [name for name in found if "/" in name]:
            found |= {layer.split("/", 1)[1], layer.rsplit("/", 1)[1]}
        found |= {"arXiv:2006.00356", "HD95"}
        kept = (name for name in found if any(c.isdigit() for c in name) and not re.fullmatch(r"[\d.,e+-]*", name))
        return sorted(kept, key=len, reverse=True)

    def without_names(self, text: str) -> str:
        """A text without the names and words in which digits are no numbers."""
        for name, pattern in self._names:
            if name in text:
                text = pattern.sub(" ", text)
        return text

    def rows(self, section: str, named: Sequence[str], claim: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """The rows that a text may be about: of its section's tables, and of the arms or the claim that it names."""
        for name in SOURCES[section]:
            table = self.tables.get(name)
            if table is None:
                continue
            columns = [c for c in ("arm", "arm_a", "arm_b", "worst_arm") if c in table]
            if name == "claims":  # their quantities name the arms that they are held against
                table = table[table["claim"] == claim] if claim else table
            elif named and columns:
                table = table[table[columns].isin(list(named)).any(axis=1)]
            yield name, table

    def values(self, section: str, text: str) -> np.ndarray:
        """Every number that a text of a section may say; shares stand for per cent too."""
        named = tuple(arm for arm in self.arms if re.search(rf"(?<![\w.-]){re.escape(arm)}(?![\w-]|\.\w)", text))
        said = re.match(r"C\d+b?\b", text)
        key = section, named, said[0] if said else ""
        if key not in self._values:
            found = np.array(list(self._numbers(*key)), np.float64)
            self._values[key] = np.unique(found[np.isfinite(found)])
        return self._values[key]

    def _numbers(self, section: str, named: Sequence[str], claim: str) -> Iterator[float]:
        for _, table in self.rows(section, named, claim):
            for column in table.columns:
                if pd.api.types.is_numeric_dtype(table[column]) and not pd.api.types.is_bool_dtype(table[column]):
                    yield from map(float, table[column].dropna().unique())
        yield from map(float, _numbers([self.study, self.config, self.pictures]))

    def triples(self, section: str) -> np.ndarray:
        """Every estimate of a section's tables with its limits, one a row."""
        if section not in self._triples:
            self._triples[section] = np.array(list(self._rows_of_three(section)), np.float64).reshape(-1, 3)
        return self._triples[section]

    def _rows_of_three(self, section: str) -> Iterator[tuple[float, float, float]]:
        for name in SOURCES[section]:
            table = self.tables.get(name, pd.DataFrame())
            sets = [(e, "ci_low", "ci_high") for e in ("mean", "mean_diff", "value", "ratio") if e in table]
            sets += [("total_ratio", "total_ci_low", "total_ci_high")] if name == "speed" else []
            sets += [("mean", "min", "max")] if name == "worst_cases" else []
            if name == "ranking":
                sets += [("gain", "joint_low", "joint_high"), ("to_best", "to_best_low", "to_best_high")]
            for columns in sets:
                if set(columns) <= set(table.columns):
                    yield from table[list(columns)].dropna().to_numpy()


def unknown_numbers(words: Words, tables: Tables) -> list[str]:
    """The numbers of a piece of text that stand in no table, and its intervals that are none of a table's rows."""
    if words.section not in SOURCES or words.section == "loaded":
        return []
    text = tables.without_names(words.text)
    bad = []
    for found in TRIPLE.finditer(text):
        near = np.ones(len(tables.triples(words.section)), bool)
        for column, shown in enumerate(found.groups()):
            near &= are_roundings(shown, tables.triples(words.section)[:, column])
        if not near.any():
            bad.append(found[0])
    for found in NUMBER.finditer(DURATION.sub(" ", text)):
        shown, share = found[0], found.string[found.end() :].startswith(" %")
        whole = "." not in shown and not share
        if shown.lstrip("+") in CONSTANTS or (whole and abs(numeric(shown)) <= COUNTED):
            continue
        known = tables.values(words.section, words.text)
        if not are_roundings(shown, 100 * known if share else known).any():
            bad.append(shown)
    return bad


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(part)


def _numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _numbers(part)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree
