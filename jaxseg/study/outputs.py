"""Writes predictions and scores, never over inputs, references or anything else that is not their own."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxseg import manifest, workdirs
from jaxseg.data.cases import CaseFiles
from jaxseg.data.formats.files import table, writing
from jaxseg.types import UserError

_TRAINING_FOLDERS = ("imagesTr", "labelsTr")


def plan(
    cases: Sequence[CaseFiles],
    folder: Path,
    *,
    seeds: Sequence[int],
    ensemble: bool,
    uncertainty: bool,
    probabilities: Sequence[str] = (),
) -> dict[str, dict[str, Path]]:
    """Returns the files of the predictions of each case.

    Args:
        cases: The cases.
        folder: Where the files go.
        seeds: Seeds that predict.
        ensemble: Whether `ensemble` stands for all `seed_<id>`.
        uncertainty: Whether there is `entropy`.
        probabilities: Names of the classes whose `probability_<index>` is wanted.
    """
    planned = {}
    for case in cases:
        name = f"{case.name}{table.prediction_ending(case.images[0])}"
        files = (
            {"ensemble": workdirs.inside(folder, name)}
            if ensemble
            else {f"seed_{seed}": workdirs.inside(folder, f"seed_{seed}", name) for seed in seeds}
        )
        if uncertainty:
            ending = table.prediction_ending(case.images[0], fractions=True)
            files["entropy"] = workdirs.inside(folder, "entropy", f"{case.name}{ending}")
        for index, class_name in enumerate(probabilities):
            ending = table.prediction_ending(case.images[0], fractions=True)
            below = f"{index}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', class_name)}"
            files[probability(index)] = workdirs.inside(folder, "probabilities", below, f"{case.name}{ending}")
        planned[case.name] = files
    return planned


def probability(index: int) -> str:
    """Returns what `plan` calls the file with the probabilities of a class."""
    return f"probability_{index}"


def check(planned: Mapping[str, Mapping[str, Path]], cases: Sequence[CaseFiles], workdir: Path) -> None:
    """Checks every file that is to be written, before anything is.

    Links in paths are resolved, and files are compared by identity: an input under another spelling is the input.

    Args:
        planned: The files as `plan` returns them.
        cases: The input cases.
        workdir: Workdir of the study that predicts.

    Raises:
        UserError: If a file of another kind is in the way, the place belongs to the inputs, to a data set or to
            the study, or two predictions would be one file.
    """
    inputs = {_identity(path): path for case in cases for path in case.images}
    images = {_identity(os.path.dirname(path) or "."): os.path.dirname(path) or "." for path in inputs.values()}
    paths = [path for files in planned.values() for path in files.values()]
    _check_folders({path.parent for path in paths}, images, workdir)
    seen: dict[tuple[object, ...], Path] = {}
    for path in paths:
        identity = _identity(path)
        if identity in inputs:
            raise UserError(f"--output: {path} is the input {inputs[identity]} itself; give another folder")
        if identity in seen:
            raise UserError(f"--output: {path} and {seen[identity]} are one file; give another folder")
        seen[identity] = path
        try:
            writing.refuse_foreign(path)
        except UserError as error:
            raise UserError(f"--output: {error}") from None


def _identity(path: str | Path) -> tuple[object, ...]:
    """What a path means: the file itself where there is one, else the place."""
    try:
        found = os.stat(path)
    except OSError:
        return (os.path.realpath(path),)
    return found.st_dev, found.st_ino


def _check_folders(folders: Iterable[Path], images: Mapping[tuple[object, ...], str], workdir: Path) -> None:
    root = os.path.realpath(workdir)
    for folder in sorted(folders):
        above = next(place for place in (folder, *folder.parents) if os.path.lexists(place) or place == place.parent)
        if not above.is_dir():
            raise UserError(f"--output: {above} is a file or leads nowhere, and no folder; give another")
        if (identity := _identity(folder)) in images:
            raise UserError(
                f"--output: label maps would lie among the images in {images[identity]}, where the next command takes "
                f"them for images; give another folder"
            )
        real = os.path.realpath(folder)
        if os.path.basename(real) in _TRAINING_FOLDERS and os.path.exists(os.path.join(real, "..", "dataset.json")):
            raise UserError(f"--output: {folder} belongs to a data set, whose cases are listed there; give another")
        own = [os.path.join(root, name) for name in workdirs.FOLDERS]
        if any(workdirs.is_below(real, place) for place in own):
            raise UserError(
                f"--output: {folder} is part of the study in {workdir}, whose files are its own; give another"
            )


def check_folder(folder: Path, workdir: Path) -> None:
    """Checks a folder that is to hold files made from a study, before any is made.

    Raises:
        UserError: If it is no folder, or belongs to a data set or to the study in `workdir`.
    """
    _check_folders({folder}, {}, workdir)


def make_folder(folder: Path) -> None:
    """Makes a folder if there is none, and checks that it is writable.

    Raises:
        UserError: If it is not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"nothing can be written to {folder} ({error.strerror}); give another folder") from None


def check_table(path: Path, first: str, *, holds: str = "") -> None:
    """Checks the place of a table before the table is made.

    Args:
        path: Path of the table.
        first: The beginning of an earlier table, which may be replaced.
        holds: What else an earlier table holds, where others begin like it.

    Raises:
        UserError: If a folder or a file of another kind is there, or nothing can be written.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, such as {path / 'scores.csv'}")
    if path.name in manifest.sealed(path.parent):
        raise UserError(f"{path} belongs to a study, whose files are its own; name another file")
    if os.path.lexists(path) and not _is_earlier(path, first.encode(), holds.encode()):
        raise UserError(f"{path} holds something else than such a table and is not replaced; name another file")
    make_folder(path.parent)


def _is_earlier(path: Path, first: bytes, holds: bytes) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(len(first)) == first and (not holds or holds in handle.read())
    except OSError:
        return False


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV as `write_file` writes a text."""
    write_file(path, table.to_csv(index=False))


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a text in UTF-8, or bytes, outside any workdir, whole or not at all and without a manifest.

    Raises:
        UserError: If it cannot be written.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as handle:
            partial = Path(handle.name)
            handle.write(content.encode() if isinstance(content, str) else content)
        os.chmod(partial, 0o666 & ~writing.umask())
        os.replace(partial, path)
    except OSError as error:
        told = "; what it would hold is printed above" if isinstance(content, str) else ""
        raise UserError(f"{path} cannot be written ({error.strerror}){told}") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
