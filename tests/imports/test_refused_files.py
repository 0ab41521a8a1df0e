"""Files that are no weights, damaged, or made to do harm: refused in one sentence, and nothing is run."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxseg.imports import readers
from jaxseg.types import UserError
from tests.imports.weight_files import Code, Command, saved, write_safetensors, zipped
from tests.optional import optional_module


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        readers.read(path)
    text = str(refused.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# ------------------------------------------------------------------------------------- known by their first bytes


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.pth").touch()
    assert "no such file" in refusal(tmp_path / "absent.pth")
    assert "is a folder" in refusal(tmp_path)
    assert "is a pipe" in refusal(tmp_path / "pipe")
    assert refusal(tmp_path / "empty.pth").endswith("is empty")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a page of HTML"),
        (b"\x1f\x8b\x08\x00 and so on", "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"weights and biases", "no file of weights that is known here"),
        ((1 << 40).to_bytes(8, "little") + b'{"a":', "claims 1,099,511,627,776 bytes"),
        ((90_000_000).to_bytes(8, "little") + b'{"a":', "ends within its safetensors header"),
    ],
)
def test_what_the_first_bytes_tell(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    assert text in refusal(tmp_path / "weights.pth")


def test_a_tar_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "weights.tar", "w") as archive:
        archive.add(__file__, "weights.pth")
    assert "is a tar archive; unpack it" in refusal(tmp_path / "weights.tar")


def test_zip_files_that_are_no_plain_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    assert "TorchScript archive" in refusal(zipped(path, {}, extra=("code/__torch__.py", "constants.pkl")))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"")
    assert "it has no data.pkl" in refusal(path)
    bomb = zipped(path, {}, extra=("data/0",), compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, of " in refusal(bomb)
    whole = zipped(path, {}, extra=("data/0",)).read_bytes()
    path.write_bytes(whole[:-40])
    assert "a damaged zip file" in refusal(path)
    # A directory with the same part 200 times more: each is stored as it is, and together they are more than the file.
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    directory = whole[start:end] + 200 * whole[whole.rindex(b"PK\x01\x02") : end]
    counts = (203).to_bytes(2, "little") * 2 + len(directory).to_bytes(4, "little")
    path.write_bytes(whole[:start] + directory + whole[end : end + 8] + counts + whole[end + 16 :])
    assert "claims parts of 2,010,0" in refusal(path)


@pytest.mark.parametrize(
    ("package", "content"), [("torch", pickle.dumps({}, 2)), ("safetensors", (2).to_bytes(8, "little") + b"{}")]
)
def test_a_missing_extra_is_named(
    package: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(content)

    def version(name: str) -> str:
        raise readers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(readers.importlib.metadata, "version", version)
    text = refusal(tmp_path / "weights")
    assert f"the package {package} that reads it is not installed: pip install 'jaxseg[import]'" in text


def test_a_pytorch_that_may_run_code_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(pickle.dumps({}, 2))
    monkeypatch.setattr(readers.importlib.metadata, "version", lambda name: "2.5.1")
    with pytest.raises(UserError, match=r"torch 2\.5\.1 may run code .* at least 2\.6 is needed"):
        readers.read(tmp_path / "weights")


# -------------------------------------------------------------------------------------------------------- safetensors


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "weights.safetensors", {"a": np.ones(100, np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "damaged safetensors file" in refusal(path)
    path.write_bytes(whole.replace(b'"F32"', b'"X32"'))
    assert "damaged safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"w": np.ones(2, np.complex64)}, "tensor 'w' is complex"),
        ({"w": np.array([1, np.nan], np.float32)}, "tensor 'w' holds values that are not finite"),
        ({"w": np.array([1e300])}, "or too large for float32"),
        ({"counter": np.ones(3, np.int64)}, "holds no tensor of numbers with a fraction"),
        ({}, "holds nothing"),
    ],
)
def test_tensors_that_are_no_weights(tensors: dict, text: str, tmp_path: Path) -> None:
    assert text in refusal(write_safetensors(tmp_path / "weights.safetensors", tensors))


# ------------------------------------------------------------------------------------------------------------ pickles


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", [Code, Command])
def test_code_in_a_pickle_is_not_run(kind: type[Code], protocol: int, tmp_path: Path) -> None:
    optional_module("torch")
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    content = pickle.dumps({"state_dict": kind(trace)}, protocol)
    assert "nothing of it was run" in refusal(zipped(path, content))
    for first in (b"", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)):
        path.write_bytes(first + content)
        assert "nothing of it was run" in refusal(path)
    assert not trace.exists()
    pickle.loads(content)  # only to see that it would
    assert trace.exists()


def test_pickles_that_are_damaged_or_no_state_dict(tmp_path: Path) -> None:
    torch = optional_module("torch")
    path = tmp_path / "weights.pth"
    old = saved(path, {"a": torch.ones(50)}, _use_new_zipfile_serialization=False).read_bytes()
    for length in (len(old) - 9, 120, 20):
        path.write_bytes(old[:length])
        assert "damaged" in refusal(path)
    path.write_bytes(pickle.dumps({"a": 1.0}))
    assert "no checkpoint that torch.save wrote" in refusal(path)
    assert "holds a whole network (torch.nn" in refusal(saved(path, torch.nn.Conv2d(1, 1, 1)))
    assert "holds a list of 2" in refusal(saved(path, [torch.ones(1), torch.ones(1)]))
    assert "'epoch' among its tensors is the number 3" in refusal(saved(path, {"w": torch.ones(2), "epoch": 3}))
    assert "holds no tensors by name, but a (1 entries)" in refusal(saved(path, {"a": {"b": {"w": torch.ones(2)}}}))
    two = {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}}
    assert "holds several sets of tensors: model, ema; --key" in refusal(saved(path, two))


def test_tensors_of_kinds_that_are_not_read(tmp_path: Path) -> None:
    torch = optional_module("torch")
    path = tmp_path / "weights.pth"
    for tensor, text in (
        (torch.eye(3).to_sparse(), "is sparse"),
        (torch.ones(2, device="meta"), "is without values"),
        (torch.zeros(1).expand(10**9), "claims 1,000,000,000 values"),
    ):
        assert text in refusal(saved(path, {"w": tensor}))
