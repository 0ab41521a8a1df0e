"""Contact sheets: slices with label outlines, to check by eye that image and label agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib.figure
import matplotlib.lines
import numpy as np
import PIL.PngImagePlugin
from jaxtyping import Float, Num

from jaxseg.data import names
from jaxseg.data.prepared import store
from jaxseg.data.prepared.task import PreparedTask
from jaxseg.regions import mask

# Okabe and Ito's colours without black, so that neighbouring labels also differ for colour-blind readers.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DASHES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
COLUMNS = 6
_STORE = "Source"
"""The text in a picture that names the store whose cases it shows."""


def write_contact_sheet(prepared: PreparedTask, path: Path, *, cases: int = 24) -> Path:
    """Write a picture of evenly spaced cases, each as its axial slice with the most foreground, with label outlines.

    Volumes are drawn with the patient's right on the right and the front up, images as their rows run, top first. Cases
    with warnings are marked with (!).

    Args:
        prepared: The prepared task. Images are shown as they are stored, so no statistics of other cases are needed.
        path: Path of the PNG.
        cases: Largest number of cases.

    Returns:
        The path of the picture.
    """
    chosen = np.unique(np.linspace(0, len(prepared.cases) - 1, min(cases, len(prepared.cases))).astype(int))
    rows = math.ceil(len(chosen) / COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(2 * COLUMNS, 2.2 * rows + 0.8), layout="constrained")
    axes = np.asarray(figure.subplots(rows, COLUMNS, squeeze=False)).ravel()
    for place in axes:
        place.set_axis_off()
        for axis in (place.xaxis, place.yaxis):  # the layout asks for their sizes, drawn or not
            axis.set_visible(False)
    for place, position in zip(axes, chosen.tolist(), strict=False):
        (arrays,) = store.read_cases(prepared.directory, [position])
        record = prepared.cases[position]
        image, label = slice_of(arrays["image"][..., 0], arrays["label"])
        aspect = record.spacing_mm[1] / record.spacing_mm[0]
        low, high = np.percentile(image, (1, 99))
        origin: Literal["lower", "upper"] = "lower" if prepared.ndim == 3 else "upper"
        place.imshow(image.T, cmap="gray", origin=origin, vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        found = {value: mask(label, classes) for value, classes in enumerate(prepared.members, start=1)}
        masks = {value: inside for value, inside in found.items() if inside.any()}
        # Enclosed labels are drawn last: where outlines coincide, as for a ring and its content, the inner one is
        # visible.
        for value in sorted(masks, key=lambda value: -np.ptp(np.nonzero(masks[value]), axis=1).prod()):
            colour, dashes = _line(value)
            inside = masks[value].astype(float).T
            place.contour(inside, levels=[0.7], colors=[colour], linestyles=[dashes], linewidths=0.8)
        place.set_title(_plain(record.name, 24) + (" (!)" if record.warnings else ""), fontsize=7, y=1.0)
    handles = []
    for value, name in enumerate(prepared.labels, start=1):
        colour, dashes = _line(value)
        handles.append(matplotlib.lines.Line2D([], [], color=colour, linestyle=dashes, label=_plain(name, 40)))
    figure.suptitle(f"{_plain(prepared.name, 80)}: {len(chosen)} of {len(prepared.cases)} cases", fontsize=9)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    figure.savefig(partial, format="png", dpi=120, metadata={_STORE: prepared.directory.name})
    partial.replace(path)  # an earlier sheet is whole until this one is
    return path


def is_shown_by(path: Path, prepared: PreparedTask) -> bool:
    """Return whether a contact sheet is there and shows this store, and not one that was in its place before."""
    try:
        with PIL.PngImagePlugin.PngImageFile(path) as picture:
            return picture.info.get(_STORE) == prepared.directory.name
    except (OSError, SyntaxError):  # none, or a damaged one
        return False


def slice_of(
    image: Float[np.ndarray, " *spatial"], label: Num[np.ndarray, " *spatial"]
) -> tuple[Float[np.ndarray, "x y"], Num[np.ndarray, "x y"]]:
    """Return the axial slice with the most foreground (the middle one if there is none); 2-D images as they are."""
    if image.ndim == 2:
        return image, label
    counts = (label > 0).sum(axis=(0, 1))
    index = int(counts.argmax()) if counts.any() else image.shape[2] // 2
    return image[:, :, index], label[:, :, index]


def _line(value: int) -> tuple[str, Literal["-", "--", ":"]]:
    """Colour and dashes of a label's outline."""
    rounds, index = divmod(value - 1, len(COLOURS))
    return COLOURS[index], DASHES[rounds % len(DASHES)]


def _plain(text: str, most: int) -> str:
    """A name that matplotlib does not take for mathematics, no longer than there is room for."""
    return names.shown(text, most).replace("$", r"\$")


def case_table(prepared: PreparedTask) -> list[dict[str, object]]:
    """Return one row per case for the report: group, grids, labels, voxels per label, foreground share and warnings.

    Refused cases follow, with the reason as their status.
    """
    rows: list[dict[str, object]] = []
    for record in prepared.cases:
        voxels = record.voxels_per_label
        rows.append(
            {
                "case": record.name,
                "group": record.group,
                **({"part": prepared.parts[record.part].name} if prepared.parts else {}),
                "status": "ok",
                "own_shape": _joined(record.own_shape),
                "own_spacing_mm": _joined(record.own_spacing_mm),
                "shape": _joined(record.shape),
                "spacing_mm": _joined(record.spacing_mm),
                "labels": ", ".join(name for name, count in zip(prepared.labels, voxels[1:], strict=True) if count),
                **{f"voxels {name}": count for name, count in zip(prepared.labels, voxels[1:], strict=True)},
                "foreground_share": _share(record.voxels_per_value or voxels),
                "warnings": "; ".join(record.warnings),
            }
        )
    rows += [{"case": name, "status": f"refused: {reason}"} for name, reason in prepared.report.refused]
    return rows


def _share(voxels: Sequence[int]) -> float:
    """The share of foreground among voxels that were counted by class, background first."""
    return sum(voxels[1:]) / max(1, sum(voxels))


def _joined(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
