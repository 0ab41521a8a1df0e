"""The host's loop: divergence, resuming, damaged checkpoints, a full disk, what is kept, what is logged and when."""

import dataclasses
import gc
import re
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import checkpoint, logs, loop, seeds, train, trees
from tests import training_parts
from tests.loop_parts import CHUNK, PLAN, RUNS, SETTINGS, TRAINING, feed_of, make_fit, score, silent


def folder(directory):
    return directory / "checkpoints"


def final(directory, runs=range(4), step=12):
    return training_parts.bits(checkpoint.read_params(folder(directory), step, runs))


def rows_of(directory):
    """Metrics without the clock."""
    return [row | {"step_seconds": None} for row in training_parts.metric_lines(directory)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a job trained without interruption."""
    directory = tmp_path_factory.mktemp("whole")
    loop.fit(make_fit(directory), silent)
    return directory


def test_a_job_leaves_its_start_its_last_steps_and_a_row_a_call(whole):
    assert checkpoint.saved_steps(folder(whole)) == (0, 8, 12)
    rows = training_parts.metric_lines(whole)
    assert [row["step"] for row in rows] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if row["val_dsc"] is not None] == [0, 4, 8, 12]
    assert [row["step_seconds"] is None for row in rows] == [True, True, *[False] * 5]
    assert logs.read_log(whole, 4).diverged_at == [None] * 4
    last = checkpoint.read_params(folder(whole), 12, range(4))
    np.testing.assert_allclose(rows[-1]["val_dsc"], score(last, {}))
    assert loop.is_done(whole, 12)
    loop.fit(make_fit(whole), silent)  # nothing to do
    assert training_parts.metric_lines(whole) == rows


def test_a_run_of_nan_leaves_the_other_three_as_they_are_without_it(whole, tmp_path):
    bad = dataclasses.replace(RUNS, rate=RUNS.rate.at[2].set(jnp.nan))
    lines = []
    loop.fit(make_fit(tmp_path, feed=feed_of(bad)), lambda *a, runs=(), **k: lines.append(runs))
    others = [0, 1, 3]
    assert final(tmp_path, others) == final(whole, others)
    ours, healthy = rows_of(tmp_path), rows_of(whole)
    for one, other in zip(ours[1:], healthy[1:], strict=True):
        assert [one["loss"][run] for run in others] == [other["loss"][run] for run in others]
    assert logs.read_log(tmp_path, 4).diverged_at == [None, None, 1, None]
    assert [line.alive for line in lines[-1]] == [True, True, False, True]


def test_rows_are_the_same_however_calls_are_split(whole, tmp_path):
    loop.fit(make_fit(tmp_path, feed=feed_of(RUNS, most=1)), silent)
    assert final(tmp_path) == final(whole)
    for one, other in zip(rows_of(tmp_path)[1:], rows_of(whole)[1:], strict=True):
        np.testing.assert_allclose(one.pop("loss"), other.pop("loss"), rtol=1e-6)
        assert one == other


class CrashError(Exception):
    """Stands for a process that died."""


@pytest.mark.parametrize(("what", "step"), [("training", 2), ("validating", 4), ("training", 6), ("training", 10)])
def test_a_job_goes_on_from_anywhere_to_the_same_bits(what, step, whole, tmp_path):
    def crash(now, done, total, note="", runs=()):
        if (now, done) == (what, step):
            raise CrashError

    with pytest.raises(CrashError):
        loop.fit(make_fit(tmp_path), crash)
    loop.fit(make_fit(tmp_path), silent)
    assert final(tmp_path) == final(whole)
    assert rows_of(tmp_path) == rows_of(whole)


def test_a_signal_saves_the_call_in_flight(whole, tmp_path):
    def interrupt(now, done, total, note="", runs=()):
        if (now, done) == ("training", 2):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match=r"SIGTERM; saved step 4 .*goes on from there"):
        loop.fit(make_fit(tmp_path), interrupt)
    assert checkpoint.saved_steps(folder(tmp_path)) == (0, 4)
    loop.fit(make_fit(tmp_path), silent)
    assert final(tmp_path) == final(whole)
    assert rows_of(tmp_path) == rows_of(whole)


def test_a_signal_in_the_last_call_ends_the_study_before_its_next_job(whole, tmp_path):
    def interrupt(now, done, total, note="", runs=()):
        if (now, done) == ("training", 10):  # told while steps 11 and 12 are computed
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match=r"SIGTERM; saved step 12 .*goes on from there"):
        loop.fit(make_fit(tmp_path), interrupt)
    assert final(tmp_path) == final(whole)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_nobody_asked_for_is_delivered_when_the_block_ends(signum):
    came = []
    before = signal.signal(signum, lambda got, frame: came.append(got))
    try:
        with loop.held_signals():
            signal.raise_signal(signum)
            assert came == []
        assert came == [signum]
    finally:
        signal.signal(signum, before)


# ---------------------------------------------------------------------------------------------------------- damage


def data_files(directory, step):
    """Of a checkpoint's arrays, the largest first."""
    files = (folder(directory) / str(step) / "state").rglob("d/*")
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


def flip_a_bit(directory, step):
    for path in data_files(directory, step):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)


def cut_short(directory, step):
    for path in data_files(directory, step):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_the_manifest(directory, step):
    (folder(directory) / str(step) / "state" / "manifest.ocdbt").unlink()


def lose_the_meta(directory, step):
    (folder(directory) / str(step) / "meta" / "metadata").write_text('{"runs": ')


@pytest.mark.parametrize("harm", [flip_a_bit, cut_short, lose_the_manifest, lose_the_meta])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(harm, whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    harm(tmp_path, 12)
    assert checkpoint.damage(folder(tmp_path), 8) is None
    with pytest.warns(UserWarning, match=r"checkpoints/12 is damaged \(.*\); set aside as .*damaged.*, going on"):
        loop.fit(make_fit(tmp_path), silent)
    assert final(tmp_path) == final(whole)
    assert rows_of(tmp_path) == rows_of(whole)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["12_0"]


def test_where_every_checkpoint_is_damaged_training_starts_again(whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    for step in (0, 8, 12):
        cut_short(tmp_path, step)
    with pytest.warns(UserWarning, match="damaged"):
        loop.fit(make_fit(tmp_path), silent)
    assert final(tmp_path) == final(whole)
    assert checkpoint.saved_steps(folder(tmp_path)) == (0, 8, 12)


def test_metrics_come_from_the_checkpoint_whatever_became_of_the_lines(whole, tmp_path):
    def crash(now, done, total, note="", runs=()):
        if (now, done) == ("training", 10):
            raise CrashError

    with pytest.raises(CrashError):
        loop.fit(make_fit(tmp_path), crash)
    path = tmp_path / logs.METRICS_FILE
    lines = path.read_text().splitlines(keepends=True)
    for harmed in (lines[:2], lines[:1] + lines[2:], [line.replace("2", "3") for line in lines], []):
        path.write_text("".join(harmed))
        assert logs.read_log(tmp_path, 4).step.tolist() == [0, 2, 4, 6, 8]
    loop.fit(make_fit(tmp_path), silent)
    assert rows_of(tmp_path) == rows_of(whole)


def test_lines_of_a_finished_job_are_written_anew_where_they_differ(whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    path, rows = tmp_path / logs.METRICS_FILE, training_parts.metric_lines(tmp_path)
    logs.mend_lines(tmp_path, 4)  # nothing to do, nothing to say
    for content in (b"", path.read_bytes()[:-10], path.read_bytes().replace(b"0.", b"1.", 1), b"\xff"):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"metrics\.jsonl differs from what was measured"):
            logs.mend_lines(tmp_path, 4)
        assert training_parts.metric_lines(tmp_path) == rows


@pytest.mark.parametrize(
    "harm", [flip_a_bit, lose_the_meta, lambda directory, step: shutil.rmtree(folder(directory) / "0")]
)
def test_a_damaged_start_is_made_anew(harm, whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    harm(tmp_path, 0)
    assert loop.mend_start(make_fit(tmp_path)) is None
    assert checkpoint.saved_steps(folder(tmp_path)) == (0, 8, 12)
    assert checkpoint.damage(folder(tmp_path), 0) is None
    assert final(tmp_path, step=0) == final(whole, step=0)
    assert not (tmp_path / "start").exists()


def test_a_damaged_start_is_made_anew_on_another_number_of_devices(whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    flip_a_bit(tmp_path, 0)
    assert loop.mend_start(make_fit(tmp_path, plan=training_parts.plan_of(devices=3))) is None  # which pad to six runs
    assert checkpoint.damage(folder(tmp_path), 0) is None
    assert final(tmp_path, step=0) == final(whole, step=0)


def test_a_start_that_comes_out_otherwise_is_not_put_in_place(tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    flip_a_bit(tmp_path, 0)
    other = make_fit(tmp_path, init=lambda: TRAINING.states(range(1, 5)))
    assert "other numbers" in loop.mend_start(other)
    assert checkpoint.damage(folder(tmp_path), 0) is not None
    assert not (tmp_path / "start").exists()


def test_a_file_that_cannot_be_read_for_now_is_no_damage(whole, tmp_path):
    loop.fit(make_fit(tmp_path), silent)
    # What is read lies in the folder of the merged arrays. Orbax leaves copies of some files in ocdbt.process_0.
    merged = folder(tmp_path) / "12" / "state" / "d"
    path = next(path for path in data_files(tmp_path, 12) if path.parent == merged)
    kept = path.read_bytes()
    path.unlink()
    path.symlink_to(path)  # opening it fails, as it does without permission or where a server does not answer
    for ask in (lambda: checkpoint.latest_sound(folder(tmp_path)), lambda: loop.fit(make_fit(tmp_path), silent)):
        with pytest.raises(OSError, match=re.escape(path.name)):
            ask()
    path.unlink()
    path.write_bytes(kept)
    assert checkpoint.saved_steps(folder(tmp_path)) == (0, 8, 12)
    assert final(tmp_path) == final(whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # writes that were under way
def test_a_full_disk_leaves_the_last_good_checkpoint(whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now, done, total, note="", runs=()):
        if (now, done) == ("training", 6):  # files cannot grow beyond this any more
            resource.setrlimit(resource.RLIMIT_FSIZE, (data_files(tmp_path, 0)[0].stat().st_size // 2, limits[1]))

    try:
        with pytest.raises(Exception, match=r"(?i)too large|no space|write"):
            loop.fit(make_fit(tmp_path), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()  # what is left of these writes goes now
    # Step 4 is written in the background, before or after the disk is full.
    assert checkpoint.latest_sound(folder(tmp_path)) in (0, 4)
    loop.fit(make_fit(tmp_path), silent)
    assert final(tmp_path) == final(whole)


# ------------------------------------------------------------------------------------------------- what is kept, when


def test_snapshots_are_saved_and_kept(whole, tmp_path):
    settings = dataclasses.replace(SETTINGS, snapshots=(2, 6))
    loop.fit(make_fit(tmp_path, settings=settings, keep=1), silent)
    assert checkpoint.saved_steps(folder(tmp_path)) == (0, 2, 6, 12)
    assert final(tmp_path) == final(whole)


def test_validation_may_begin_late(whole, tmp_path):
    loop.fit(make_fit(tmp_path, validate_from=8), silent)
    rows = training_parts.metric_lines(tmp_path)
    assert [row["step"] for row in rows if row["val_dsc"] is not None] == [0, 8, 12]
    assert final(tmp_path) == final(whole)


def test_a_validation_reaches_the_state_and_the_best_is_kept(tmp_path):
    """DSC of run r at the n-th validation is `table[n][r]`; run 0 is best first, run 1 last."""
    table = iter(np.array([[0.0] * 4, [0.9, 0.1, 0.5, 0.5], [0.8, 0.2, 0.6, 0.5], [0.7, 0.3, 0.1, 0.6]]))
    training = dataclasses.replace(TRAINING, optim=dataclasses.replace(training_parts.OPTIM, schedule="plateau"))
    chunk = seeds.map_seeds(train.make_train_chunk(training.step), plan=PLAN, shared=(2, 3, 4, 5), donate=(0,))

    def start(seed):
        state = training_parts.make_state(training_parts.MODEL, training.tx, seed)
        opt_state = training.tx.init(state.params)
        best = train.Best(state.params, jnp.float32(-jnp.inf), jnp.int32(0))
        return dataclasses.replace(state, opt_state=opt_state, best=best)

    fields = {
        "chunk": chunk,
        "like": jax.eval_shape(lambda: start(0)),
        "init": lambda: trees.stack([start(seed) for seed in range(4)]),
        "observe": seeds.map_seeds(train.make_observe(training.optim), plan=PLAN, donate=(0,)),
        "validate": lambda params, frozen: next(table),
        "settings": dataclasses.replace(SETTINGS, snapshots=(4,)),
    }
    loop.fit(make_fit(tmp_path, **fields), silent)
    found = [checkpoint.read_best(folder(tmp_path), 12, run) for run in range(4)]
    assert [(step, pytest.approx(dsc)) for _, step, dsc in found] == [(4, 0.9), (12, 0.3), (8, 0.6), (12, 0.6)]
    for (params, step, _), run in zip(found, range(4), strict=True):
        assert training_parts.bits(params) == training_parts.bits(checkpoint.read_seed(folder(tmp_path), step, run))
    with checkpoint.open_manager(folder(tmp_path), keep=2, snapshots=(4,)) as manager:
        state = checkpoint.restore(manager, 12, fields["like"])
    scale = {path: leaf for path, leaf in trees.flatten(state.opt_state).items() if path.endswith("rate_scale")}
    np.testing.assert_allclose(*scale.values(), [0.81, 1.0, 0.9, 1.0], rtol=1e-6)


def test_the_next_call_is_dispatched_before_the_last_one_is_written(tmp_path):
    seen = []

    def chunk(state, runs, cohort, frozen, start, stop):
        seen.append(("call", int(stop)))
        return CHUNK(state, runs, cohort, frozen, start, stop)

    def progress(now, done, total, note="", runs=()):
        if now in ("training", "validating"):
            seen.append((now, done))

    settings = dataclasses.replace(SETTINGS, eval_every=6, save_every=12)
    loop.fit(make_fit(tmp_path, chunk=chunk, settings=settings), progress)
    assert seen[:7] == [
        ("call", 2), ("call", 4), ("training", 2), ("call", 6), ("training", 4), ("validating", 6), ("training", 6)
    ]  # fmt: skip
    assert seen[7] == ("call", 8)


def test_the_state_is_donated():
    states = seeds.put(TRAINING.states(range(4)), PLAN)
    CHUNK(states, seeds.put(RUNS, PLAN), seeds.replicate(TRAINING.cohort, PLAN), {}, np.int32(0), np.int32(2))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states.params))


def test_curves_go_to_tensorboard_by_arm_with_every_seed_and_the_mean(whole):
    content = b"".join(path.read_bytes() for path in whole.glob("events.out.tfevents.*"))
    for arm in ("scratch", "transfer"):
        for name in ("seed_0", "seed_1", "mean"):
            for curve in ("loss", "val_dsc"):
                assert f"{arm}/n0_fold0/{curve}/{name}".encode() in content


def test_rows_of_runs_that_all_diverged_are_written(tmp_path):
    bad = dataclasses.replace(RUNS, rate=jnp.full(4, jnp.nan))
    loop.fit(make_fit(tmp_path, feed=feed_of(bad)), silent)
    rows = training_parts.metric_lines(tmp_path)
    assert logs.read_log(tmp_path, 4).diverged_at == [1] * 4
    assert rows[0]["step"] == 0


def test_a_call_that_holds_the_host_until_it_is_done_has_its_own_time(tmp_path):
    call = 0.05

    # As a loop of steps does on a GPU, where the host decides whether there is another step.
    def chunk(*args):
        time.sleep(call)
        return jax.block_until_ready(CHUNK(*args))

    begun = time.perf_counter()
    loop.fit(make_fit(tmp_path, chunk=chunk), silent)
    took = time.perf_counter() - begun
    rows = [row for row in training_parts.metric_lines(tmp_path) if row["step_seconds"] is not None]
    seconds = [2 * row["step_seconds"] for row in rows]  # of the two steps of a call
    assert len(seconds) == 5
    assert min(seconds) >= call / 2
    assert sum(seconds) <= took
