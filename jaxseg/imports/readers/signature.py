"""What a file is, by its first bytes: names and endings of checkpoints say little about their content."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Literal

from jaxseg.types import UserError

Kind = Literal["safetensors", "zip", "pickle"]

_START = 512
"""Bytes that are looked at."""
_LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header that the format allows."""
_OTHERS = (
    (b"\x89HDF", "an HDF5 file, such as Keras writes; only files of PyTorch and of safetensors are read"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file; fetch the file itself (git lfs pull)"),
    (b"<", "a page of HTML or XML, such as a server sends in place of a file; download the file itself"),
    (b"\x93NUMPY", "an array of NumPy; only files of PyTorch and of safetensors are read"),
)
"""First bytes of files that are taken for checkpoints, and what to say of them."""


def signature_of(path: Path) -> Kind:
    """Returns what a file is: a safetensors file, a zip file of PyTorch, or a pickle of PyTorch before 1.6.

    Raises:
        UserError: There is no such file, it is none of these, or its first bytes show that it is damaged.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder; --input names a file of weights in it")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is a pipe, socket or device and not a file")
        with path.open("rb") as handle:
            start = handle.read(_START)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except NotADirectoryError:
        raise UserError(f"{path}: no such file; something on the way to it is no folder") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: there is no permission") from None
    if not start:
        raise UserError(f"{path} is empty")
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "zip"
    # Before other signatures: a header may begin with any eight bytes.
    if start[8:9] == b"{":
        _check_header(path, int.from_bytes(start[:8], "little"))
        return "safetensors"
    for first, what in _OTHERS:
        if start.lstrip().startswith(first) if first == b"<" else start.startswith(first):
            raise UserError(f"{path} is {what}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path} is a tar archive; unpack it, and give the file of weights in it")
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return "pickle"
    raise UserError(
        f"{path} is no file of weights that is known here: neither a checkpoint of PyTorch nor a safetensors file"
    )


def _check_header(path: Path, length: int) -> None:
    """Refuses a safetensors file whose header claims a length that it cannot have."""
    size = path.stat().st_size
    if length > _LONGEST_HEADER:
        raise UserError(
            f"{path}: its safetensors header claims {length:,} bytes, and the format allows {_LONGEST_HEADER:,}; the "
            f"file is damaged, or no safetensors file"
        )
    if length + 8 > size:
        raise UserError(f"{path} ends within its safetensors header: it is cut short; download it again")


def _check_zip(path: Path) -> None:
    """Refuses zip files that are damaged, are no plain checkpoint, or would unpack to more than they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise UserError(f"{path} is a damaged zip file ({error}): it may be cut short; download it again") from None
    names = [entry.filename.partition("/")[2] for entry in entries]
    if any(name.startswith("code/") for name in names) or "constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript archive, which holds a program beside the weights, and is not opened; where you "
            f"trust it, torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE) writes the weights alone"
        )
    if "data.pkl" not in names:
        raise UserError(f"{path} is a zip file, but no checkpoint of PyTorch: it has no data.pkl; unpack it first")
    packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise UserError(
            f"{path}: its part {packed.filename!r} is compressed, of {packed.file_size:,} bytes in "
            f"{packed.compress_size:,}; PyTorch compresses nothing, so that this is no checkpoint of its own"
        )
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise UserError(
            f"{path} claims parts of {total:,} bytes together, and has {path.stat().st_size:,} itself; it is damaged, "
            f"or made to fill the memory"
        )
