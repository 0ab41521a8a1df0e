"""Commands with a workdir in a bucket: what they bring, where they put it, and what they refuse."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jax
import pytest

import jaxseg
from jaxseg.buckets import address, reading
from jaxseg.types import UserError
from launch import export, places, predict, study, track, verdicts
from tests import programs
from tests.buckets.faults import QUICK, new_bucket, objects_of, put, results, tree
from tests.buckets.test_bucket_mirror import on
from tests.buckets.test_states import latest
from tests.commands import make_command
from tests.conftest import ROOT

CONFIG_FILE = ROOT / "tests" / "tiny_study.py"
CONFIG = f"--config={CONFIG_FILE}"
PLACE = "s3://bucket/runs/tiny"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch):
    """A bucket in memory instead of the one that an address names."""
    place = new_bucket()
    for module in (places, reading):
        monkeypatch.setattr(module, "open_objects", lambda found: objects_of(place))
    monkeypatch.setattr("jaxseg.buckets.mirror.Timing", lambda: QUICK)
    return place


def test_a_study_begun_on_one_machine_ends_on_another_with_the_tables_of_one_on_a_disk(
    bucket, tiny_study: Path, tmp_path: Path, monkeypatch, capsys
):
    command = make_command(monkeypatch, capsys, study.main)
    begun = command(CONFIG, f"--workdir={PLACE}", f"--scratch={tmp_path / 'one'}", "--stages=prepare,pretrain,train")
    assert begun[0] == 0, begun[2]
    status, out, errors = command(CONFIG, f"--workdir={PLACE}/", f"--scratch={tmp_path / 'two'}")
    assert status == 0, errors
    assert not re.search(r"^train_0/0", out, re.MULTILINE), "what was trained is not trained again"
    assert f"bucket: {PLACE} holds all of it; the page is {PLACE}/report.html" in out
    copy = reading.local_copy(PLACE, scratch=tmp_path / "reader")
    assert results(copy) == results(tiny_study)
    objects = objects_of(bucket)
    assert objects.names() >= {"report.html", "results/cases.csv", latest(objects)}
    shown = {name for name in objects.names() if not name.startswith("objects/")} - {latest(objects)}
    assert {name for name in tree(copy) if name.startswith(("results/", "figures/"))} | {"report.html"} == shown

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jaxseg.load(PLACE).table("cases").equals(jaxseg.load(tiny_study).table("cases"))
    found = verdicts.find([PLACE])
    assert verdicts.names(found) == ["tiny"]


def test_readers_bring_no_prepared_data_and_what_one_left_out_another_keeps(bucket, tmp_path: Path):
    with on(tmp_path, bucket):
        put(tmp_path / "work", {"study.json": b"{}", "stores/a/x.array_record": b"x"})

    def read(wanted) -> set[str]:
        return {*tree(reading.local_copy(PLACE, scratch=tmp_path / "cache", wanted=wanted))}

    assert read(reading.without_stores) == {"study.json"}
    assert read(reading.all_paths) == {"study.json", "stores/a/x.array_record"}
    assert read(reading.without_stores) == {"study.json", "stores/a/x.array_record"}
    with pytest.raises(UserError, match=r"no study in s3://bucket/other: manifests/ is empty"):
        reading.copy_of(objects_of(new_bucket()), address.parse("s3://bucket/other"), tmp_path / "cache")


COMMANDS = {
    "study": (study.main, (CONFIG, "--workdir=PLACE")),
    "predict": (predict.main, ("--workdir=PLACE", "--arm=a", "--input=i", "--output=o")),
    "score": (predict.main, ("--workdir=PLACE", "--score=.")),
    "export": (export.main, ("--workdir=PLACE", "--arm=a")),
    "track": (track.main, ("--workdir=PLACE",)),
    "verdicts": (verdicts.main, ("--studies=PLACE",)),
}


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_an_address_for_a_folder(name, scheme, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    main, arguments = COMMANDS[name]
    words = [word.replace("PLACE", f"{scheme}://bucket/x") for word in arguments]
    command = make_command(monkeypatch, capsys, main)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, _, errors = command(*words)
    assert status == 2
    assert "pip install 'jaxseg[buckets]'" in errors
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (study.main, ("--workdir=az://b/x",), "or lie in a bucket as gs://BUCKET/PATH"),
        (study.main, ("--workdir=gs://b*/x",), "cannot name a bucket"),
        (study.main, ("--workdir=gs://bucket/x", "--stages=plan"), "needs a folder of this machine"),
        (study.main, ("--workdir=x", "--scratch=gs://bucket/y"), "only a study's workdir may lie in a bucket"),
        (
            study.main,
            ("--workdir=x", "--config.target.data=s3://bucket/y"),
            "only a study's workdir may lie in a bucket",
        ),
        (study.main, ("--workdir=x", "--config.runtime.store_dir=gs://bucket/y"), "only a study's workdir may lie in"),
        (
            study.main,
            ("--workdir=x", "--config.pretrain.from_workdir=gs://bucket/y"),
            "only a study's workdir may lie in",
        ),
        (predict.main, ("--workdir=x", "--output=gs://bucket/y"), "only a study's workdir may lie in a bucket"),
    ],
)
def test_addresses_elsewhere_are_refused(main, words, said, tmp_path: Path, monkeypatch, capsys):
    config = [] if main is predict.main else [f"--config={CONFIG_FILE}"]
    command = make_command(monkeypatch, capsys, main)
    monkeypatch.chdir(tmp_path)
    status, _, errors = command(*config, *words)
    assert status == 2
    assert said in errors
    assert not [path for path in tmp_path.rglob("*") if ":" in path.name]


def test_one_of_several_processes_is_refused(bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="a bucket serves a study of one process"), places.working(PLACE):
        pass
    assert not objects_of(bucket).names()


def test_a_path_that_lost_a_slash_opens_no_study():
    with pytest.raises(UserError, match="lost a slash"):
        jaxseg.load(Path(PLACE))


def test_the_jobs_of_a_cluster_share_a_folder(tmp_path: Path):
    words = (CONFIG, "--workdir=gs://bucket/x", "--grid=optim.lr=1e-3", "--cluster=slurm")
    done = programs.start("launch.sweep", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "whose jobs all see the same folder, needs a folder of this machine" in done.stderr
    assert not list(tmp_path.iterdir())
