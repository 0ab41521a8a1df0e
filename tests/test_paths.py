"""Paths with characters that mean something in a URL, a pattern or a shell: used as they are, or refused by name."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxseg import checkpoint, oserrors, paths, settings, trees
from jaxseg.data.formats import sources
from jaxseg.data.prepared import store
from jaxseg.study.workdir import check_workdir
from jaxseg.types import UserError
from tests import tiny_study, training_parts

USABLE = (
    *("a b", "tail ", "grün", "100%", "a%20b", "run#2", "a:b", "file:x", "{a}", "~x", "new\nline", "x|y", "a&b=c"),
    *("-dash", "x;y", "a@2", "o'q", '"', "a,b", "$HOME", "]"),
)
UNUSABLE = ("run[1]", "lr[1:2]", "[", "a*b", "what?", "a\\b", "gs:", "logs:", os.fsdecode(b"\xff\xfe"))


def save(directory: Path) -> bytes:
    """Saves a checkpoint of step 4 and two runs; the bits of the second one's first parameter."""
    states = training_parts.Training().states((0, 1))
    with checkpoint.open_manager(directory, keep=1) as manager:
        checkpoint.save(manager, 4, states, {})
    return next(iter(training_parts.bits(trees.take(states.params, 1)).values()))


def read(directory: Path) -> bytes:
    """The same bits, read back."""
    return next(iter(training_parts.bits(checkpoint.read_seed(directory, 4, 1)).values()))


@pytest.mark.parametrize("name", USABLE)
def test_checkpoints_are_found_again_below_any_usable_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name / "checkpoints"
    paths.check_trainable(directory, "workdir")
    bits = save(directory)
    assert checkpoint.latest_sound(directory) == 4
    assert read(directory) == bits
    assert [entry.name for entry in (tmp_path / name).iterdir()] == ["checkpoints"], "nothing was set aside"
    assert [entry.name for entry in tmp_path.iterdir()] == [name], "nothing was written elsewhere"


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_workdir_that_checkpoints_cannot_lie_in_is_refused_before_anything_is_written(tmp_path: Path, name: str):
    workdir = tmp_path / name / "study"
    with pytest.raises(UserError, match="rename the folder, or give another") as caught:
        check_workdir(tiny_study.tiny_config(), workdir)
    assert str(workdir)[len(str(tmp_path)) :] in str(caught.value) or repr(str(workdir)) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?"])
def test_a_finished_folder_may_be_moved_below_a_pattern_and_is_read(tmp_path: Path, name: str) -> None:
    bits = save(tmp_path / "plain")
    os.rename(tmp_path / "plain", tmp_path / name)
    assert read(tmp_path / name) == bits


def test_what_tensorstore_would_take_for_another_folder_is_no_damage(tmp_path: Path) -> None:
    save(tmp_path / "plain")
    os.rename(tmp_path / "plain", tmp_path / "a\\b")
    with pytest.raises(UserError, match="backslash; rename the folder"):
        checkpoint.latest_sound(tmp_path / "a\\b")
    assert (tmp_path / "a\\b" / "4").is_dir()


def test_a_workdir_may_be_named_through_a_link_and_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "inner")
    monkeypatch.chdir(tmp_path / "disk" / "inner")
    directory = Path("../../link/../checkpoints")
    bits = save(directory)
    assert checkpoint.latest_sound(directory) == 4
    assert read(tmp_path / "disk" / "checkpoints") == bits
    assert read(Path(f"/{tmp_path}/disk/checkpoints")) == bits


@pytest.mark.parametrize("name", [*USABLE, "run[1]", "what?", "a\\b"])
def test_a_store_is_found_again_below_any_name(tmp_path: Path, name: str) -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    store.write(tmp_path / name, lambda: iter([{"image": image}]), {"image": (3, np.float32)}, lambda: {"made": 1})
    assert store.exists(tmp_path / name)
    assert store.read_metadata(tmp_path / name)["made"] == 1
    np.testing.assert_array_equal(store.read_cases(tmp_path / name, [0])[0]["image"], image)


def test_a_tfds_folder_may_hold_a_question_mark(tmp_path: Path) -> None:
    arrays = {"image": np.ones((8, 8, 1), np.float32), "label": np.ones((8, 8), np.uint8)}
    features = {"image": (3, np.float32), "label": (2, np.uint8)}
    store.write(tmp_path / "what?labels=x", lambda: iter([arrays]), features, dict)
    folder = next((tmp_path / "what?labels=x").rglob("dataset_info.json")).parent
    opened = sources.open_source(f"tfds:{folder}?labels=organ&split=cases", ndim=2, cache=tmp_path)
    assert opened.listing.labels == (("organ", 1),)


def test_the_home_is_put_in_for_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.expand("~/runs") == tmp_path / "runs"
    assert paths.expand("a/~/b") == Path("a/~/b")
    with pytest.raises(UserError, match=r"the home that ~nobody-of-this-name stands for is not known"):
        paths.expand("~nobody-of-this-name/runs")


def test_text_of_a_config_that_is_not_utf8_is_refused_by_field() -> None:
    changed = tiny_study.changed(target__data=os.fsdecode(b"/data/\xff"))
    with pytest.raises(UserError, match=r"config\.target\.data = .*allowed: UTF-8 text"):
        settings.parse(changed)


# ---------------------------------------------------------------------------------- what is no fault of a file's


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("look", [checkpoint.latest_sound, lambda directory: checkpoint.damage(directory, 4)])
def test_a_checkpoint_that_cannot_be_opened_now_is_not_set_aside(
    tmp_path: Path, look: Callable[[Path], object]
) -> None:
    directory = tmp_path / "checkpoints"
    save(directory)
    assert checkpoint.damage(directory, 4) is None
    with no_descriptors(), pytest.raises(OSError, match="Too many open files") as caught:
        look(directory)
    assert caught.value.errno == errno.EMFILE
    assert [entry.name for entry in directory.parent.iterdir()] == ["checkpoints"]


SYSTEM = 'Error reading local file "/a/b": Failed to open: "/a/b": {} [os_error_code=\'{}\']'


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ValueError(f"PERMISSION_DENIED: {SYSTEM.format('Permission denied', errno.EACCES)}"), True),
        (ValueError(f"UNAVAILABLE: {SYSTEM.format('Stale file handle', errno.ESTALE)}"), True),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), True),
        (OSError(errno.EIO, "Input/output error", "/a/b"), True),
        (MemoryError(), True),
        (RuntimeError("can't start new thread"), True),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), True),
        (ValueError("DATA_LOSS: Error decoding manifest"), False),
        (ValueError(f"NOT_FOUND: {SYSTEM.format('No such file', errno.ENOENT)}"), False),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), False),
        (KeyError("crc32"), False),
        (RecursionError("maximum recursion depth exceeded"), False),
        (NotImplementedError("UNIMPLEMENTED: no such codec"), False),
    ],
)
def test_what_of_the_machine_passes_and_what_tells_of_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "read_meta", fail)
    if not passes:
        assert checkpoint.damage(tmp_path / "checkpoints", 4)
        return
    with pytest.raises(type(error) if not isinstance(error, ValueError) else (OSError, ValueError)):
        checkpoint.latest_sound(tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints" / "4").is_dir()
    found = oserrors.behind(error)
    assert found is None or (found.filename == "/a/b" and found.errno)
