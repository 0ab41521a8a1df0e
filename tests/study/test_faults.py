"""Any file of a finished workdir may be damaged: nothing is silently other, and there is always a way on.

Files are flipped, cut, emptied and removed at random, with seeds. After each damage the readers may give what was
written or say that it is damaged. Then the study's own command runs again, and where it refuses, what its message says
is done. In the end, all tables and networks must be those of the undamaged study.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

import jaxseg
from configs import default
from jaxseg import trees
from jaxseg.report import write_report
from jaxseg.study import files
from jaxseg.study.run import STAGES, run_stages
from jaxseg.types import UserError
from tests.study.test_run import assert_same_results
from tests.tiny_study import silent, tiny_config

PER_KIND = 3
"""Damages of each kind of file in the long test."""
ADVICE = re.compile(r"(?:[Rr]emove|delete) the folder ([^\s,;]+)")


def every_kind() -> ConfigDict:
    """A study whose workdir has every kind of file."""
    made = tiny_config()
    made.pretrain.share = "one"
    made.vary = "init,order"
    made.train.steps, made.train.save_every = 6, 2
    made.pretrain.steps = 4
    made.runtime.keep_checkpoints = 2
    made.analysis.cases = 1
    made.arms = default.pick_arms("scratch", "frozen_pretrained_encoder", "prior")
    made.arms.scratch.optim = ConfigDict({"lr_grid": (1e-3, 1e-2), "lr_seeds": (50,)})
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("faults") / "whole"
    run_stages(every_kind(), workdir, stages=STAGES, progress=silent)
    write_report(workdir)
    return workdir


def kind_of(path: Path) -> str:
    """Files that one piece of code writes and reads: paths without what only numbers them."""
    text = str(path)
    text = re.sub(r"/d/[0-9a-f]+$", "/d/DATA", text)
    text = re.sub(r"events\.out\.tfevents\..*", "events", text)
    text = re.sub(r"stores/[^/]+", "stores/STORE", text)
    text = re.sub(r"(train|select|pretrain)(_\d+)?/chunk_\d+", "JOB", text)
    text = re.sub(r"figures/.*", "figures/FIGURE", text)
    return re.sub(r"/checkpoints/(\d+)/", lambda m: f"/checkpoints/{'START' if m[1] == '0' else 'LATER'}/", text)


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


HARMS: dict[str, Callable[[bytes, np.random.Generator], bytes | None]] = {
    "flipped": flip,
    "cut": lambda content, rng: content[: rng.integers(len(content))],
    "emptied": lambda content, rng: b"",
    "gone": lambda content, rng: None,
}


@dataclasses.dataclass(frozen=True)
class Damage:
    path: Path
    """Relative to the workdir."""
    harm: str
    seed: int

    def do(self, workdir: Path) -> None:
        path = workdir / self.path
        if path.is_dir():
            shutil.rmtree(path)
            return
        made = HARMS[self.harm](path.read_bytes(), np.random.default_rng(self.seed))
        path.unlink()
        if made is not None:
            path.write_bytes(made)


def damages(workdir: Path, per_kind: int) -> Iterator[Damage]:
    """Of every kind of file so many, each of another file or another harm; and every kind of folder taken away."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size):
        relative = path.relative_to(workdir)
        kinds.setdefault(kind_of(relative), []).append(relative)
    for kind, paths in kinds.items():
        rng = np.random.default_rng(zlib.crc32(kind.encode()))
        for number in range(per_kind):
            harm = "flipped" if number % 2 == 0 else ("cut", "gone", "emptied")[number // 2 % 3]
            yield Damage(paths[rng.integers(len(paths))], harm, int(rng.integers(2**31)))
    folders = {kind_of(path.relative_to(workdir)): path for path in sorted(workdir.rglob("*")) if path.is_dir()}
    for path in folders.values():
        yield Damage(path.relative_to(workdir), "gone", 0)


def tables(workdir: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: files.read_table(path) for path in sorted((workdir / "results").glob("*.csv"))}


def read_all(workdir: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What a user reads of a finished study, one thing after another."""
    for name in ("cases", "summary", "similarity", "curves", "rates", "claims"):
        yield f"table {name}", lambda name=name: jaxseg.load(workdir).table(name).to_csv()
    yield "record", lambda: str(jaxseg.load(workdir).record)
    yield "config", lambda: str(jaxseg.load(workdir).config)
    for arm, step in (("scratch", 0), ("scratch", None), ("frozen_pretrained_encoder", None)):

        def bits(arm: str = arm, step: int | None = step) -> list[bytes]:
            params = jaxseg.load(workdir).arm(arm).params(0, step)
            return [np.asarray(leaf).tobytes() for leaf in trees.flatten(params).values()]

        yield f"params of {arm} at {step}", bits


@functools.cache
def written(finished: Path) -> dict[str, Any]:
    """What a user reads of the undamaged study."""
    return {what: read() for what, read in read_all(finished)}


def run(workdir: Path, *, with_page: bool) -> str | None:
    """The study's command once more; what it refuses for, or None."""
    try:
        run_stages(every_kind(), workdir, stages=STAGES, progress=silent)
        if with_page:
            write_report(workdir)
    except UserError as error:
        return str(error)
    return None


def outcome(damage: Damage, finished: Path, workdir: Path) -> str:
    """What became of a damage: `unused`, `recovered`, `advised`, or what is wrong."""
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(finished, workdir)
    damage.do(workdir)
    for what, read in read_all(workdir):
        try:
            if read() != written(finished)[what]:
                return f"SILENTLY OTHER: {what}"
        except (UserError, FileNotFoundError):
            continue
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # The page takes most of the time. It reads tables, which the stages before have written anew.
        with_page = damage.path.parts[0] in ("figures", "report.html", "load_tables")
        refusal = run(workdir, with_page=with_page)
        found = "recovered" if any("damaged" in str(w.message) or "lost" in str(w.message) for w in told) else "unused"
        if refusal is not None:
            advice = ADVICE.search(refusal)
            if advice is None:
                return f"DEAD END: {refusal}"
            shutil.rmtree(advice[1])
            if (refusal := run(workdir, with_page=with_page)) is not None:
                return f"DEAD END after advice: {refusal}"
            found = "advised"
    try:
        assert_same_results(workdir, finished)
        ours, theirs = tables(workdir), tables(finished)
        assert ours.keys() == theirs.keys()
        for name, table in ours.items():
            drop = [column for column in table if "seconds" in column]
            pd.testing.assert_frame_equal(table.drop(columns=drop), theirs[name].drop(columns=drop), obj=name)
    except AssertionError as error:
        return f"SILENTLY OTHER: {str(error).splitlines()[0]}"
    return found


@pytest.mark.parametrize(
    ("name", "harm", "expected"),
    [
        ("study.json", "cut", "recovered"),
        ("results/rates.csv", "cut", "unused"),  # written from the trials' logs whatever it holds
        ("train/*/chunk_0/cases.csv", "flipped", "recovered"),
        ("analysis/*/similarity.csv", "gone", "recovered"),
        ("train/train*/chunk_0/checkpoints/6/shared/**/d/*", "gone", "recovered"),
        ("train/train_0/chunk_0/checkpoints/0", "gone", "recovered"),
    ],
)
def test_a_damaged_file_is_made_anew(name: str, harm: str, expected: str, finished: Path, tmp_path: Path) -> None:
    path = max(finished.glob(name), key=lambda path: path.stat().st_size)
    assert outcome(Damage(path.relative_to(finished), harm, 0), finished, tmp_path / "study") == expected


@pytest.mark.slow
def test_no_damage_is_silent_and_none_is_a_dead_end(finished: Path, tmp_path: Path) -> None:
    found: dict[str, dict[str, int]] = {}
    bad: list[str] = []
    planned = list(damages(finished, PER_KIND))
    assert len(planned) > 300
    for damage in planned:
        came = outcome(damage, finished, tmp_path / "study")
        counts = found.setdefault(kind_of(damage.path), {})
        counts[came.split(":")[0]] = counts.get(came.split(":")[0], 0) + 1
        if ":" in came:
            bad.append(f"{damage}: {came}")
    lines = [f"{kind}: {counts}" for kind, counts in found.items()]
    print(len(planned), "damages", *lines, sep="\n")  # noqa: T201
    assert not bad, "\n".join(bad)
