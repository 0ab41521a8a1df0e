"""Names that become paths lead below their folder and nowhere else; a workdir's own entries are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg import workdirs
from jaxseg.types import UserError


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/passwd", "a/b", "../x", "a\\b", "nul\0l", "x" * 256, "é" * 128, None, 3]
)
def test_names_that_are_no_single_step_are_refused(name: object) -> None:
    with pytest.raises(UserError, match="cannot name a file or folder"):
        workdirs.inside(Path("work"), "predictions", name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["case_01", "...", "Größe", "a b", "-5", "~", "x" * 255, "[1]"])
def test_other_names_are_taken_as_they_are(name: str) -> None:
    assert workdirs.inside(Path("work"), "predictions", name) == Path("work") / "predictions" / name


@given(st.lists(st.text(max_size=6), min_size=1, max_size=3))
def test_whatever_is_not_refused_lies_below(names: list[str]) -> None:
    try:
        path = workdirs.inside(Path("/studies/mine"), *names)
    except (UserError, UnicodeEncodeError):
        return
    assert workdirs.is_below(path.resolve(), Path("/studies/mine"))
    assert len(path.parts) == 3 + len(names)


def test_below_is_said_of_whole_names() -> None:
    assert workdirs.is_below("/a/b", "/a/b")
    assert workdirs.is_below("/a/b/c", "/a/b")
    assert not workdirs.is_below("/a/bc", "/a/b")
    assert not workdirs.is_below("/a", "/a/b")


def test_everything_in_a_finished_workdir_is_known(tiny_study: Path) -> None:
    """A new entry has to be added to the lists, else links under its name would be followed."""
    found = {path.name for path in tiny_study.iterdir()}
    assert found <= {*workdirs.FOLDERS, *workdirs.FILES}
    assert {"train", "results", "study.json", ".lock"} <= found
