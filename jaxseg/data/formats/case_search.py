"""Search for the cases of a Decathlon or nnU-Net folder; others are refused with a reason or named in a warning."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jaxseg.data import names
from jaxseg.data.cases import CaseFiles
from jaxseg.data.formats import image_files
from jaxseg.data.formats.description import Entry, grouped
from jaxseg.data.formats.files.table import strip_extension
from jaxseg.data.formats.image_files import CHANNEL, channel_of, the_one
from jaxseg.data.volumes.volume import BadCaseError

NOT_USED = "are not used"
"""What a warning says of images beside the training cases, such as those of a test set."""


class CaseSearch:
    """The state of a search. Call one of `from_folders` and `from_list`, then `finish`."""

    def __init__(
        self,
        folder: Path,
        numbers: tuple[int, ...],
        groups: Mapping[str, str],
        ending: str | None = None,
        *,
        part: str = "Tr",
    ):
        """Start an empty search.

        Args:
            folder: Folder of dataset.json.
            numbers: Numbers of the channel files.
            groups: Patient of each case.
            ending: See `image_files.image_files`.
            part: `Tr` for the training cases, in imagesTr/ and labelsTr/; `Ts` for those of imagesTs/ and labelsTs/.
        """
        self.folder = folder
        self.images, self.labels = f"images{part}", f"labels{part}"
        self.numbers = numbers
        self.groups = groups
        self.ending = ending
        self.cases: dict[str, CaseFiles] = {}
        self.refused: dict[str, str] = {}
        """Reasons by name, as the data has the name."""
        self.warnings: list[str] = []
        self.listed: dict[str, Entry] | None = None
        """Cases of dataset.json; None if the folders determine the cases."""
        self._folders: dict[Path, dict[str, list[Path]]] = {}
        self._channel_files: dict[Path, dict[str, dict[str, list[Path]]]] = {}
        self._unlabelled: list[str] = []

    # ------------------------------------------------------------------------------------------------------ findings

    def _add(self, name: str, images: Sequence[Path], label: Path) -> None:
        if reason := names.problem(name):
            self._refuse(name, f"its name {reason}; rename its files")
        else:
            case = CaseFiles(name, name, tuple(map(str, images)), str(label), patient=name, published=False)
            self.cases[name] = grouped(case, self.groups)

    def _refuse(self, name: str, reason: str) -> None:
        """Refuse a case; of several reasons, the first is kept."""
        self.cases.pop(name, None)
        self.refused.setdefault(name, reason)

    def _files_in(self, folder: Path) -> dict[str, list[Path]]:
        """The image files of a folder, which is listed once."""
        if folder not in self._folders:
            self._folders[folder] = image_files.image_files(folder, self.ending)
        return self._folders[folder]

    def _shown(self, part: str, name: str) -> str:
        """The file that a case is expected to have, in the format of the folder."""
        others = (path.name for paths in self._files_in(self.folder / part).values() for path in paths)
        ending = self.ending or next((name[len(strip_extension(name)) :] for name in others), ".nii.gz")
        return f"{part}/{names.shown(name)}{ending}"

    def _channels_in(self, folder: Path, case: str) -> dict[str, list[Path]]:
        """The channel files of one case, which are sorted by case once: a folder may hold thousands."""
        if folder not in self._channel_files:
            by_case: dict[str, dict[str, list[Path]]] = {}
            for key, paths in self._files_in(folder).items():
                if match := CHANNEL.match(key):
                    by_case.setdefault(match["case"], {})[key] = paths
            self._channel_files[folder] = by_case
        return self._channel_files[folder].get(case, {})

    def _channels(self, case: str, folder: Path) -> tuple[Path, ...]:
        return image_files.channel_files(case, self._channels_in(folder, case), self.numbers, "dataset.json names")

    # ------------------------------------------------------------------------------------------------------- folders

    def from_folders(self) -> None:
        """Add the cases of the folder of labels with their images (nnU-Net v2 lists none in dataset.json)."""
        folder = self.folder / self.images
        images, used = self._files_in(folder), set[str]()
        for name, label_paths in self._files_in(self.folder / self.labels).items():
            used |= {*self._channels_in(folder, name), name}
            try:
                label = the_one(label_paths, "its label")
                self._add(name, self._image_of(name, folder), label)
            except BadCaseError as error:
                self._refuse(name, str(error))
        self._unlabelled = sorted(set(images) - used)

    def refuse_unlabelled(self) -> None:
        """Refuse images that `from_folders` found no label of."""
        for key in self._unlabelled:
            case = match["case"] if (match := CHANNEL.match(key)) else key
            what = f"its label {self._shown(self.labels, case)} does not exist"
            self._refuse(key, what + self._instead(self.labels, case))

    def name_unlabelled(self) -> None:
        """Warn of images that `from_folders` found no label of, as a test set may have."""
        if self._unlabelled:
            shown = names.several(self._unlabelled)
            self.warnings.append(f"{len(self._unlabelled)} image(s) of {self.images}/ have no label: {shown}")

    def _image_of(self, name: str, folder: Path) -> tuple[Path, ...]:
        images = self._files_in(folder)
        single = (the_one(images[name], "one image"),) if name in images else ()
        several = self._channels(name, folder)
        if single and several:
            raise BadCaseError(f"it has an image, {single[0].name}, and channel files beside it, {several[0].name}")
        if not single and not several:
            channel = Path(self._shown(self.images, f"{name}_0000")).name
            what = f"its image {self._shown(self.images, name)} (or {channel}) does not exist"
            raise BadCaseError(what + self._instead(self.images, name))
        return single or several

    def _instead(self, part: str, name: str) -> str:
        """A file of another format that has the name of a missing one."""
        found = [path for path in image_files.entries(self.folder / part) if image_files.stem(path) == name]
        return f"; {image_files.reason_of(found[0], [])}" if found else ""

    # ---------------------------------------------------------------------------------------------------------- list

    def from_list(self, listed: Sequence[Entry]) -> None:
        """Add the cases that dataset.json lists."""
        self.listed = {}
        covered = set[str]()
        for entry in listed:
            name = self._name_of(entry)
            stems = {_stem(path) for path in entry.images}
            if entry.bare and stems <= covered:  # another channel of a case that is listed file by file
                continue
            if name in self.listed:
                self.cases.pop(name, None)
                self.refused[name] = "dataset.json lists it more than once"
                continue
            self.listed[name] = entry
            try:
                images, label = self._listed_images(name, entry), self._listed_label(name, entry)
            except BadCaseError as error:
                self._refuse(name, str(error))
                continue
            covered |= {_stem(str(path)) for path in images}
            self._add(name, images, label)
        self._refuse_unlisted(self.listed)

    def _name_of(self, entry: Entry) -> str:
        if entry.name is not None or not entry.images:
            return names.normal(entry.text)
        stems = [_stem(path) for path in entry.images]
        label = _stem(entry.label) if isinstance(entry.label, str) else None
        matches = [CHANNEL.match(stem) for stem in stems]
        cases = {match["case"] if match else None for match in matches}
        if len(stems) > 1:
            (case,) = cases if len(cases) == 1 else (None,)
            return case or label or stems[0]
        (case,) = cases
        known = self._files_in(self.folder / "labelsTr") if entry.bare else {label}
        return case if case is not None and stems[0] not in known and case in known else stems[0]

    def _listed_images(self, name: str, entry: Entry) -> tuple[Path, ...]:
        if not entry.images:
            raise BadCaseError("its entry in dataset.json has no `image`")
        found = [self._locate(path, "one image") for path in entry.images]
        if found == [None]:  # nnU-Net v1 lists NAME.nii.gz and stores NAME_0000.nii.gz
            channels = self._channels(name, (self.folder / entry.images[0]).parent)
            if channels:
                return channels
        if None in found:
            lost = entry.images[found.index(None)]
            raise BadCaseError(f"its image {names.shown(lost)} does not exist")
        paths = tuple(path for path in found if path is not None)
        numbers = [channel_of(_stem(str(path)), name) for path in paths]
        if len(paths) == 1 and numbers[0] is not None and len(self.numbers) > 1:  # one channel file stands for all
            return self._channels(name, paths[0].parent)
        if None not in numbers and numbers != list(self.numbers):
            told = ", ".join(path.name for path in paths)
            self.warnings.append(f"{names.shown(name)}: its channels are taken in the order of the list: {told}")
        return paths

    def _listed_label(self, name: str, entry: Entry) -> Path:
        if entry.bare:
            paths = self._files_in(self.folder / "labelsTr").get(name)
            if paths is None:
                raise BadCaseError(f"its label {self._shown('labelsTr', name)} does not exist")
            return the_one(paths, "its label")
        if entry.label is None:
            raise BadCaseError("its entry in dataset.json has no label")
        if not isinstance(entry.label, str):
            raise BadCaseError(f"its `label` in dataset.json is {entry.label!r}; one path is needed")
        path = self._locate(entry.label, "its label")
        if path is None:
            raise BadCaseError(f"its label {names.shown(entry.label)} does not exist")
        return path

    def _locate(self, text: str, what: str) -> Path | None:
        """The file of this path, or of the same name with another ending or with accents coded another way."""
        path = self.folder / text
        if _exists(path):
            return path
        paths = self._files_in(path.parent).get(_stem(text))
        return None if paths is None else the_one(paths, what)

    def _refuse_unlisted(self, listed: Mapping[str, Entry]) -> None:
        """Images that dataset.json does not list and that nobody labelled; others are warned of by `finish`."""
        used = {path for case in self.cases.values() for path in case.images}
        known = {*listed, *self._files_in(self.folder / "labelsTr")}
        for key, paths in self._files_in(self.folder / "imagesTr").items():
            case = match["case"] if (match := CHANNEL.match(key)) else key
            if not {key, case} & known and not {str(path) for path in paths} & used:
                what = f"{names.shown(paths[0].name)} in imagesTr has no label and dataset.json does not list it"
                self._refuse(key, what)

    # --------------------------------------------------------------------------------------------------- passed over

    def finish(self) -> None:
        """Refuse files that look like a case and cannot be read, and warn of all other unused files."""
        used = {os.path.abspath(str(path)) for case in self.cases.values() for path in (*case.images, case.label)}
        for part in (self.images, self.labels):
            readable = [path for paths in self._files_in(self.folder / part).values() for path in paths]
            over = [path.name for path in readable if os.path.abspath(path) not in used and self._is_silent(path)]
            for path, inside in image_files.passed_over(self.folder / part, readable).items():
                images = [image for image in inside or [path] if image_files.is_image(image)]
                key = f"{path.name}/" if inside else self._case_of(path)
                if self.listed is None and any(self._is_new(image) for image in images):
                    self._refuse(key, image_files.reason_of(path, inside))
                elif key not in self.refused:
                    over.append(f"{path.name}/" if inside else path.name)
            if over:
                self.warnings.append(
                    f"{len(over)} file(s) or folder(s) in {part}/ are passed over: {names.several(sorted(over))}"
                )
        if self.images == "imagesTr":
            self._name_other_images(used)

    def _name_other_images(self, used: Collection[str]) -> None:
        """Images beside imagesTr/ and labelsTr/, such as a labelled test set. Those of imagesTs/ are without labels."""
        for path in image_files.entries(self.folder):
            inside = image_files.entries(path) if path.name not in ("imagesTr", "labelsTr", "imagesTs") else []
            images = [p.name for p in inside or [path] if image_files.is_image(p) and os.path.abspath(p) not in used]
            if images:
                where = f"in {names.shown(path.name)}/" if inside else "beside dataset.json"
                self.warnings.append(f"{len(images)} image(s) {where} {NOT_USED}: {names.several(images, 3)}")

    def _case_of(self, path: Path) -> str:
        """The case that a file's name speaks of."""
        name = image_files.stem(path)
        match = CHANNEL.match(name)
        return match["case"] if match and name not in self.cases and name not in self.refused else name

    def _is_silent(self, path: Path) -> bool:
        return self._case_of(path) not in self.refused

    def _is_new(self, path: Path) -> bool:
        case = self._case_of(path)
        return case not in self.cases and case not in self.refused


def _stem(path: str) -> str:
    return names.normal(strip_extension(Path(path).name))


def _exists(path: Path) -> bool:
    # A loop of symbolic links is an entry that exists and cannot be read: the reader reports it, as it does a folder
    # without permission. A name that no file can have is one that does not exist.
    try:
        os.lstat(path)
    except ValueError:
        return False
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    return True
