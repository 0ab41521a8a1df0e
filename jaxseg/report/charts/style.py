"""What all figures share: one look for each arm, the print of matplotlib, and clean SVG."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

INK = "#1d2327"
MUTED = "#5f6b73"
RULE = "#d5dade"
BASELINE_ARM = "scratch"

WIDE_INCHES = 7.2
NARROW_INCHES = 3.7
"""Widths of a figure in a page's text column and on a phone; at 96 px an inch they need no scaling there."""

FONT_PT = 9.0

# Okabe and Ito's colour-blind-safe set without its yellow, which is too pale for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BASELINE_COLOUR = "#3b4248"
_MARKERS = ("s", "D", "^", "v", "P", "X", "p")
_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout everywhere, and never too narrow
    "font.size": FONT_PT,
    "text.parse_math": False,  # a name may hold dollar signs
    "axes.formatter.use_mathtext": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxseg",
    "figure.facecolor": "white",
}


@dataclasses.dataclass(frozen=True)
class ArmStyle:
    """How an arm looks in every figure: a colour, and a marker and a dash for readers who see no colour."""

    colour: str
    marker: str
    dash: Any
    note: str = ""
    """What must be said beside every number of the arm; empty for most."""

    @property
    def scale(self) -> float:
        """What a marker's size is multiplied by for all to look alike in size."""
        return {"^": 1.2, "v": 1.2, "P": 1.2, "X": 1.1, "p": 1.15, "s": 0.92, "D": 0.88}.get(self.marker, 1.0)

    @property
    def ink(self) -> str:
        """The colour, darkened until text in it reads on white."""
        return readable(self.colour)


def arm_styles(arms: Sequence[str], notes: Mapping[str, str] = MappingProxyType({})) -> dict[str, ArmStyle]:
    """Return a look for each arm: the baseline in grey, the others in the study's order.

    Two arms never share both colour and marker below 43 arms, nor colour and dash below 19.

    Args:
        arms: Arm names in the order of study.json.
        notes: See `ArmStyle.note`.

    Returns:
        arm -> its style.
    """
    styles = {BASELINE_ARM: ArmStyle(_BASELINE_COLOUR, "o", "-")} if BASELINE_ARM in arms else {}
    for i, arm in enumerate(arm for arm in arms if arm != BASELINE_ARM):
        dash = _DASHES[i // len(_COLOURS) % len(_DASHES)]
        styles[arm] = ArmStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], dash)
    return {arm: dataclasses.replace(style, note=notes.get(arm, "")) for arm, style in styles.items()}


def contrast_on_white(colour: str) -> float:
    """Return a colour's contrast to white, 1 to 21 (WCAG 2.1, relative luminance).

    >>> round(contrast_on_white("#000000"), 1)
    21.0
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 1.05 / (luminance + 0.05)


def readable(colour: str, ratio: float = 4.5) -> str:
    """Return the colour darkened in small steps until its contrast to white reaches `ratio` (WCAG AA)."""
    while contrast_on_white(colour) < ratio:
        colour = "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.95):02x}" for i in (1, 3, 5))
    return colour


def swatch_path(style: ArmStyle) -> str:
    """Return the arm's marker as the `d` of an SVG path inside the square from (-1, -1) to (1, 1)."""
    marker = MarkerStyle(style.marker)
    polygon = np.asarray(marker.get_path().transformed(marker.get_transform()).to_polygons()[0])
    scaled = polygon / np.abs(polygon).max() * min(0.86 * style.scale, 1.0)
    return "M" + "L".join(f"{x:.2f} {-y:.2f}" for x, y in scaled) + "Z"


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Give matplotlib the report's settings for a while, whatever the user's own are.

    The fonts at hand may lack a letter of a name; the SVG keeps the letter and the reader's browser has it, so the
    warning of the PNG's empty box is dropped.
    """
    with warnings.catch_warnings(), matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not support", category=UserWarning)
        yield


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG document whose text stays text."""
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DECIMALS = re.compile(r"-?\d+\.\d{3,}")
_FONT_FAMILY = re.compile(r"font-family: [^;]*;? ?")
_LINE_TO = re.compile(r"(?<=\d)\s+L\s+")
_SPACES = re.compile(r"\s+")
_TICK = re.compile(r"[xy]tick_\d+$")
"""Groups of a tick and its label: the layout's numbers, not the study's."""
_URL = re.compile(r"url\(#")


def inline_svg(document: str, *, prefix: str, alt: str) -> str:
    """Make an SVG document fit to stand inside a page among others.

    Identifiers get a prefix (two figures of a page may not share any), numbers are rounded, metadata, fonts and
    fixed sizes go (the page's style sheet rules), a label for screen readers comes.

    Args:
        document: An SVG document as matplotlib writes it.
        prefix: A prefix that is unique in the page: letters, digits, `_` and `-`.
        alt: What the figure shows, in words.

    Returns:
        One `<svg>` element; all text in it is escaped.
    """
    root = ET.fromstring(document)
    for element in list(root):
        if element.tag == f"{_SVG}metadata" or element.find(f"{_SVG}style") is not None:
            root.remove(element)
    _share_images(root)
    _share_styles(root)
    for element in root.iter():
        _clean(element, prefix)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": alt, "class": "chart"}
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return ET.tostring(root, encoding="unicode")


def _share_images(root: ET.Element) -> None:
    """Keep each picture once: panels that show the same pixels refer to the first one's."""
    placed: dict[tuple[str | None, ...], str] = {}
    for image in list(root.iter(f"{_SVG}image")):
        key = tuple(image.get(name) for name in (_HREF, "width", "height"))
        transform, clip = image.attrib.pop("transform", ""), image.attrib.pop("clip-path", "")
        if key not in placed:
            placed[key] = f"picture-{len(placed)}"
            ET.SubElement(root, f"{_SVG}defs").append(ET.Element(f"{_SVG}image", image.attrib | {"id": placed[key]}))
        image.tag = f"{_SVG}use"
        image.attrib.clear()
        image.attrib |= {_HREF: f"#{placed[key]}", "transform": transform} | ({"clip-path": clip} if clip else {})


def _share_styles(root: ET.Element) -> None:
    """Say the style of a row of markers once, in their group."""
    for group in root.iter(f"{_SVG}g"):
        styles = {child.get("style") for child in group}
        if len(group) > 1 and len(styles) == 1 and None not in styles and all(c.tag == f"{_SVG}use" for c in group):
            group.set("style", str(styles.pop()))
            for child in group:
                del child.attrib["style"]


def _clean(element: ET.Element, prefix: str) -> None:
    attributes: Mapping[str, str] = dict(element.attrib)
    is_group = element.tag == f"{_SVG}g"
    for key, value in attributes.items():
        if key == "id":
            if is_group:  # nothing refers to a group
                del element.attrib[key]
                if _TICK.match(value):
                    element.set("class", "tick")
            else:
                element.set(key, f"{prefix}-{value}")
        elif key == _HREF and value.startswith("#"):
            element.set(key, f"#{prefix}-{value[1:]}")
        elif key == "transform" and value.startswith("rotate(-0 "):
            del element.attrib[key]
        elif key in ("d", "x", "y", "points"):
            element.set(key, _short(value))
        elif key in ("style", "clip-path"):
            element.set(key, _FONT_FAMILY.sub("", _URL.sub(f"url(#{prefix}-", value)))
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _short(coordinates: str) -> str:
    """Round coordinates, long paths to a tenth of a point, and leave out what SVG takes as understood."""
    digits = 1 if len(coordinates) > 400 else 2
    rounded = _DECIMALS.sub(lambda match: f"{float(match[0]):.{digits}f}".rstrip("0").rstrip("."), coordinates)
    if "C" not in rounded and "Q" not in rounded:  # numbers after M and L are points of lines anyway
        rounded = _LINE_TO.sub(" ", rounded)
    return _SPACES.sub(" ", rounded).strip()
