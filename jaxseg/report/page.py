"""Put the sections on one self-contained page, and every figure beside it as SVG and PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from jaxseg.report.blocks import Block, Chart, Fold, Section, Table
from jaxseg.report.charts.style import NARROW_INCHES, WIDE_INCHES, arm_styles, inline_svg, to_png, to_svg
from jaxseg.report.sections.accuracy import accuracy_section
from jaxseg.report.sections.arms import standfirst
from jaxseg.report.sections.checkpoints import checkpoint_notes, with_notes
from jaxseg.report.sections.elsewhere import elsewhere_section
from jaxseg.report.sections.examples import examples_section
from jaxseg.report.sections.filters import filters_section
from jaxseg.report.sections.provenance import load_section, provenance_section
from jaxseg.report.sections.similarity import similarity_section
from jaxseg.report.sections.summary import summary_section
from jaxseg.report.sections.training import training_section
from jaxseg.report.sections.variability import variability_section
from jaxseg.report.tables import read_tables
from jaxseg.text import plain

SECTIONS = (
    *(summary_section, accuracy_section, elsewhere_section, training_section, filters_section, similarity_section),
    *(variability_section, examples_section, load_section, provenance_section),
)
"""The sections in order; each takes the tables and the arms' styles, and one without blocks is left out. A new analysis
adds its own here."""

MANIFEST = ".report.json"
"""The list of the files in `figures` that the page wrote; others, such as a user's own, are left alone."""


def write_report(workdir: Path) -> Path:
    """Write `report.html` and `figures/*.svg|png|csv` from a workdir's tables.

    The page needs no network and no script. Sections whose tables are missing say so. Numbers that
    stand in no table of results/ lie in a CSV beside the figures.

    Args:
        workdir: The folder of a study, with study.json and what there is of config.json, results/ and load_tables/.

    Returns:
        The page's path.

    Raises:
        UserError: There is no readable study.json, or a table lacks a column.
    """
    tables = read_tables(workdir)
    styles = arm_styles(tables.arms, checkpoint_notes(tables))
    built = [build(tables, styles) for build in SECTIONS]
    sections = [with_notes(section, styles) for section in built if section.blocks]
    return write_page(
        workdir, name=tables.study.name, kind="transfer-learning study", lead=standfirst(tables), sections=sections
    )


def write_page(workdir: Path, *, name: str, kind: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write `report.html` and the figures of its sections; what an earlier page had there and this one lacks goes.

    Args:
        workdir: Where the page and its folder `figures` go.
        name: The page's heading.
        kind: What the page is about, such as `transfer-learning study`.
        lead: A sentence or two below the heading.
        sections: The page's parts, in order.

    Returns:
        The page's path.
    """
    folder = workdir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [block for section in sections for block in _flat(section.blocks)]
    tables = {
        f"{block.stem}.csv": block.data
        for block in blocks
        if isinstance(block, Chart | Table) and block.data is not None
    }
    charts = [block for block in blocks if isinstance(block, Chart)]
    written = {*tables, *(f"{chart.stem}.{ending}" for chart in charts for ending in ("svg", "png"))}
    before = _read_manifest(folder)
    _write_manifest(folder, before | written)  # first, so that files of a page that was cut short are known too
    drawn = {chart.stem: _draw(chart, folder) for chart in charts}
    for file, table in tables.items():
        write(folder / file, table.to_csv(index=False).encode("utf-8"))
    page = workdir / "report.html"
    write(page, render(name, kind, lead, sections, drawn).encode("utf-8"))
    for file in before - written:
        (folder / file).unlink(missing_ok=True)
    _write_manifest(folder, written)
    return page


def _read_manifest(folder: Path) -> set[str]:
    """Files of the folder that pages wrote; none where the list is missing or no longer readable."""
    try:
        return set(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _write_manifest(folder: Path, names: set[str]) -> None:
    write(folder / MANIFEST, json.dumps(sorted(names), indent=1).encode("utf-8"))


def render(
    name: str,
    kind: str,
    lead: str,
    sections: Sequence[Section],
    drawn: Mapping[str, Markup],
    *,
    refresh: str = "",
) -> str:
    """Fill the template: an HTML document in which everything that comes from data is escaped.

    Args:
        name: See `write_page`.
        kind: See `write_page`.
        lead: See `write_page`.
        sections: See `write_page`.
        drawn: The figures of the sections by stem.
        refresh: Seconds after which a browser loads the page again, or `0; url=...` to go to another at once; empty
            for a page that stays.
    """
    files = resources.files("jaxseg.report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
    )
    environment.filters["plain"] = lambda text: text if isinstance(text, Markup) else plain(text)
    return environment.get_template("template.html").render(
        name=name,
        kind=kind,
        standfirst=lead,
        sections=sections,
        drawn=drawn,
        refresh=refresh,
        style=Markup((files / "style.css").read_text(encoding="utf-8")),
    )


def _flat(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Fold):
            yield from _flat(block.blocks)


def _draw(chart: Chart, folder: Path) -> Markup:
    """Write a figure's files and return it for the page."""
    wide = chart.draw(width=WIDE_INCHES)
    document = to_svg(wide)
    write(folder / f"{chart.stem}.svg", document.encode("utf-8"))
    write(folder / f"{chart.stem}.png", to_png(wide))
    return inlined(chart, document)


def inlined(chart: Chart, document: str) -> Markup:
    """Return a figure for the page, once for its column, from the SVG given, and once for phones."""
    alt = plain(chart.alt)
    narrow = inline_svg(to_svg(chart.draw(width=NARROW_INCHES)), prefix=f"{chart.stem}-narrow", alt=alt)
    return Markup('<div class="wide">{}</div>\n<div class="narrow">{}</div>').format(
        Markup(inline_svg(document, prefix=chart.stem, alt=alt)), Markup(narrow)
    )


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
