"""Folders of images as sources of networks that learn without labels: no label map is sought or read.

With `dataset.json`, its channels, name and groups count as they do beside labels, and nothing else of it does: every
image of `imagesTr/` is a case, whether it is listed or labelled or neither. `imagesTr/` and `imagesTs/` themselves are
described by the `dataset.json` beside them. Without `dataset.json`, the images are those of `imagesTr/` or of the
folder itself, and every image is a patient of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseg.data import names
from jaxseg.data.cases import CaseList
from jaxseg.data.formats import description as descriptions
from jaxseg.data.formats import image_files
from jaxseg.data.formats.files.reading import open_image
from jaxseg.data.formats.files.table import ENDINGS
from jaxseg.data.formats.patients import group_warnings
from jaxseg.data.volumes.volume import BadCaseError, channels_in
from jaxseg.types import UserError

CHANNEL_NAME = "image"
"""Name of the channels where nothing names them."""


def read_images(folder: Path, description: Mapping[str, Any] | None, where: Path) -> CaseList:
    """List the images of a folder as cases without labels.

    Args:
        folder: The folder, which exists.
        description: The contents of the dataset.json of its set; None if there is none.
        where: Path of that file, in the folder of the set.

    Raises:
        UserError: It holds no image, or its dataset.json is unusable.
    """
    images = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    groups: Mapping[str, str] = {}
    if description is None:
        count = _count_channels(images)
        modality = (CHANNEL_NAME,) if count == 1 else tuple(f"{CHANNEL_NAME} {index}" for index in range(count))
    else:
        descriptions.file_ending(description, where)
        modality, _ = descriptions.channels(description, where)
        groups = descriptions.groups(description, where)
    parts = [where.parent / name for name in ("labelsTr", "labelsTs")]
    labelled = {name for part in parts for name in image_files.image_files(part)} if description is not None else set()
    found = image_files.find_images(images, len(modality), known={*groups, *labelled})
    cases = tuple(descriptions.grouped(case, groups) for case in found.cases)
    elsewhere = {*labelled, *(name for name, _ in found.refused), *_other_images(images, where.parent)}
    over = (*group_warnings(cases, groups, elsewhere), *image_files.unread(images, folders=False))
    return CaseList(
        name=descriptions.task_name(description or {}, where.parent, where),
        labels=(),
        ignore=None,
        modality=modality,
        cases=cases,
        refused=tuple((names.shown(name), reason) for name, reason in found.refused),
        warnings=over,
        splits=None,
        sources=() if description is None else (where,),
    )


def _other_images(images: Path, root: Path) -> set[str]:
    """The cases that other folders of images of the set may hold, whether their files are numbered or not."""
    others = [root / name for name in ("imagesTr", "imagesTs") if (root / name).resolve() != images.resolve()]
    found = {name for other in others for name in image_files.image_files(other)}
    return found | {match["case"] for name in found if (match := image_files.CHANNEL.match(name))}


def _count_channels(images: Path) -> int:
    """The channels of a folder that nothing describes: its numbered files, or what the first image holds itself.

    Raises:
        UserError: There is no image.
    """
    found = image_files.image_files(images)
    if not found:
        raise UserError(
            f"The folder {images} holds no image that is read ({', '.join(ENDINGS)}); {image_files.holds(images)}."
        )
    numbers: dict[str, set[int]] = {}
    for name in found:
        match = image_files.CHANNEL.match(name)
        numbers.setdefault(match["case"] if match else name, set()).add(int(match["channel"]) if match else -1)
    (several, *others) = {tuple(sorted(group)) for group in numbers.values()}
    if not others and len(numbers) > 1 and several == tuple(range(len(several))):
        return len(several)
    first = next(iter(found.values()))[0]
    try:
        return channels_in(open_image(str(first)).shape)
    except (BadCaseError, OSError) as error:
        raise UserError(
            f"{first} cannot be read, from which the number of channels of {images} is taken ({error}). Remove it, or "
            f"name the channels in {images}/dataset.json."
        ) from None
