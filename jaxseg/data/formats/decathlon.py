"""The ten tasks of the Medical Segmentation Decathlon by name: `msd:Task04_Hippocampus`.

A task is taken from the folder named by the environment variable JAXSEG_DATA, as a folder `TaskNN_Name/` or as the
archive `TaskNN_Name.tar`; otherwise the archive is downloaded by TFDS's download manager. Archives are checked
against their published MD5 sums before anything is unpacked.

Simpson et al. 2019, arXiv:1902.09063. Addresses and sums are those of the public mirror that the MONAI project keeps.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from jaxseg import paths
from jaxseg.data import names
from jaxseg.types import UserError

ADDRESS = "https://msd-for-monai.s3-us-west-2.amazonaws.com/{name}.tar"
MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}


def find_task(name: str, *, cache: Path) -> Path:
    """Return the folder of a Decathlon task, unpacked from an archive or downloaded if necessary.

    Args:
        name: Name of the task, such as `Task04_Hippocampus`.
        cache: Folder of downloads and unpacked archives.

    Raises:
        UserError: There is no such task, no source to take it from, or the archive is not the published one.
    """
    if name not in MD5:
        near = difflib.get_close_matches(name, MD5, n=1, cutoff=0.4)
        hint = f" Did you mean msd:{near[0]}?" if near else ""
        raise UserError(f"data 'msd:{name}': the Decathlon has no such task; it has {', '.join(MD5)}.{hint}")
    unpacked = cache / "msd" / name
    given = paths.expand(os.environ["JAXSEG_DATA"]) if os.environ.get("JAXSEG_DATA") else None
    for folder in ([given / name] if given else []) + [unpacked]:
        if (folder / "dataset.json").exists():
            return folder
    archive = given / f"{name}.tar" if given else None
    if archive is None or not archive.exists():
        archive = _download(name, cache)
    check_md5(archive, MD5[name])
    unpack(archive, name, unpacked)
    return unpacked


def _download(name: str, cache: Path) -> Path:
    try:
        manager = tfds.download.DownloadManager(download_dir=str(cache / "downloads"), dataset_name=name)
        return Path(os.fspath(manager.download(ADDRESS.format(name=name))))
    except Exception as error:  # whatever the network layer raises, the mending is the same
        raise UserError(
            f"data 'msd:{name}': {ADDRESS.format(name=name)} cannot be downloaded ({type(error).__name__}: {error}). "
            f"Put {name}.tar or the folder {name}/ into a directory and name that in JAXSEG_DATA."
        ) from None


def check_md5(archive: Path, expected: str) -> None:
    """Compare an archive with its published MD5 sum.

    Raises:
        UserError: They differ, because the archive is incomplete or another file.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{archive} has the MD5 sum {digest.hexdigest()} and the published archive {expected}: it is incomplete or "
            "another file. Remove it and fetch it again."
        )


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, archive: Path) -> None:
    """Write a plain file of an archive; links, devices and `._*` files of macOS are left out."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive} holds {member.name!r}, outside its folder; nothing was kept.")
    for part in path.parts:
        if reason := names.problem(part) if not part.startswith(".") else None:
            raise UserError(f"{archive} holds '{names.shown(member.name)}', whose name {reason}; nothing was kept.")
    stream = tar.extractfile(member) if member.isreg() else None
    if stream is None or path.name.startswith("._"):
        return
    place = folder / path
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with stream, place.open("xb") as out:
            shutil.copyfileobj(stream, out)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{archive} holds '{names.shown(member.name)}' twice or as file and folder.") from None


def _put(folder: Path, target: Path) -> None:
    """Give a folder its final name, unless another process has put the same one there meanwhile."""
    try:
        os.replace(folder, target)
    except OSError as error:
        if (target / "dataset.json").exists():
            return
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(
            f"{target} is in the way of {target.name}, which is unpacked there: it is no folder with a dataset.json. "
            f"Remove {target} and start again"
        ) from None


def unpack(archive: Path, name: str, target: Path) -> None:
    """Unpack the folder `name` of a tar archive as `target`, atomically.

    Only plain files are written, and no member can be written outside the target. Of several processes that unpack at
    once, the first to finish provides the folder.

    Raises:
        UserError: The archive is damaged, a member points out of its folder, or the target holds something else.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _unpack_member(tar, member, partial, archive)
        if not (partial / name / "dataset.json").exists():
            raise UserError(f"{archive} holds no {name}/dataset.json.")
        _put(partial / name, target)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is damaged: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
