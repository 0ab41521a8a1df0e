"""What is scored: runs that diverged are not, and the prior's label maps are cleaned up as every arm's are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from configs import default
from jaxseg import checkpoint, logs, manifest, metrics, settings
from jaxseg.report import write_report
from jaxseg.study import files
from jaxseg.study.probe import stage as probe_stage
from jaxseg.study.run import run_stages
from jaxseg.study.score import comparisons, prior, tables
from jaxseg.study.score import stage as score_stage
from jaxseg.study.score.scoring import case_sets
from jaxseg.types import Progress, UserError
from tests.tiny_study import changed, silent, tiny_config

DIVERGED = {("scratch", 1), *(("frozen_random_encoder", seed) for seed in (0, 1))}
"""One of two runs of an arm, and every run of an arm that is a job of its own."""
DIED_AT = 2


@pytest.fixture(scope="module")
def diverged(tiny_study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int]]]:
    """The tiny study scored again as if runs had diverged, and what scoring told: (job, number of cases)."""
    workdir = tmp_path_factory.mktemp("diverged") / "study"
    shutil.copytree(tiny_study, workdir, ignore=shutil.ignore_patterns("analysis", "figures"))
    for part in workdir.rglob("cases.csv"):
        manifest.remove(part)
    runs = files.read_json(workdir / "study.json")["runs"]
    read_log = logs.read_log

    def log_with_deaths(directory: Path, num_runs: int) -> logs.TrainingLog:
        log = read_log(directory, num_runs)
        for run in runs:
            if (run["arm"], run["seed"]) in DIVERGED and workdir / run["directory"] == directory:
                after = log.step > DIED_AT
                log.steps_alive[run["index"], after] = 0
                log.loss[run["index"], after] = log.val_dsc[run["index"], after] = np.nan
        return log

    told = []

    def telling(title: str) -> Progress:
        def progress(what: str, done: int, total: int, note: str = "", runs: object = ()) -> None:
            if what == "scoring" and done == total:
                told.append((title, total))

        return progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "read_log", log_with_deaths)
        run_stages(tiny_config(), workdir, stages=("evaluate",), progress=telling)
    tables.write_comparisons(settings.parse(tiny_config()), workdir)
    return workdir, told


def test_a_diverged_run_has_no_scores_and_its_cases_are_not_read(
    diverged: tuple[Path, list[tuple[str, int]]], tiny_study: Path
) -> None:
    workdir, told = diverged
    scored, every = (files.read_table(where / "results" / "cases.csv") for where in (workdir, tiny_study))
    lost = [key in DIVERGED for key in zip(every["arm"], every["seed"], strict=True)]
    assert sum(lost) == len(DIVERGED) * 2 * 2, "runs x test cases x labels"
    pd.testing.assert_frame_equal(scored, every[~np.array(lost)].reset_index(drop=True), check_exact=True)
    own = {run["directory"] for run in files.read_json(workdir / "study.json")["runs"] if run["arm"] == "scratch"}
    assert told == [(f"evaluate {Path(*own).parent.name}/0", 2)], "the job whose runs all diverged reads no case"


def test_a_diverged_run_is_named_and_counted(diverged: tuple[Path, list[tuple[str, int]]]) -> None:
    workdir, _ = diverged
    record = files.read_json(workdir / "study.json")
    named = {f"{arm}/n0_fold0/seed_{seed}": f"diverged at step {DIED_AT}" for arm, seed in DIVERGED}
    assert {entry["case"]: entry["reason"] for entry in record["exclusions"]} == named
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "3 runs diverged" in text
    assert "scratch seed 1" in text


def test_a_diverged_run_enters_no_mean(diverged: tuple[Path, list[tuple[str, int]]], tiny_study: Path) -> None:
    workdir, _ = diverged
    summary, comparisons = (
        files.read_table(workdir / "results" / f"{name}.csv") for name in ("summary", "comparisons")
    )
    of = summary[(summary["metric"] == "dsc") & (summary["label"] == "mean")].set_index("arm")
    assert of["n_seeds"].to_dict() == {"scratch": 1, "transfer": 2}
    whole = files.read_table(tiny_study / "results" / "cases.csv")
    alone = whole[(whole["arm"] == "scratch") & (whole["seed"] == 0) & whole["status"].isin(["ok", "missed"])]
    assert of["mean"]["scratch"] == pytest.approx(
        alone.groupby(["group", "case"])["dsc"].mean().groupby("group").mean().mean()
    )
    pair = comparisons[(comparisons["metric"] == "dsc") & (comparisons["label"] == "mean")]
    assert pair[["arm_a", "arm_b", "n_seeds"]].to_numpy().tolist() == [["transfer", "scratch", 1]]
    together = files.read_table(workdir / "results" / "ensemble_cases.csv")
    assert set(together["arm"]) == {"transfer"}, "one network of scratch is no ensemble"
    convergence = files.read_table(workdir / "results" / "convergence.csv").set_index(["arm", "seed"])
    assert convergence.loc[[key for key in sorted(DIVERGED) if key in convergence.index], "censored"].all()


def test_when_every_run_diverged_the_settings_to_change_are_named(tiny_study: Path, tmp_path: Path) -> None:
    """Their part tables are written without rows, and read back so; later stages come all the same."""
    planned = run_stages(tiny_config(), tiny_study, stages=(), progress=silent)
    plan, (own,) = planned.plan, case_sets(planned.study, planned.tasks)
    for job in plan.of_kind("train"):
        files.write_table(tmp_path / job.directory / score_stage.PART, pd.DataFrame([]))
    cases = tables.cases_table(settings.parse(tiny_config()), tmp_path, plan, own)
    assert cases.empty
    files.write_table(tmp_path / "results" / "cases.csv", cases)
    with pytest.raises(UserError, match=r"every run diverged.*smaller config\.optim\.lr"):
        tables.require_scores(tmp_path)
    read = files.read_table(tmp_path / "results" / "cases.csv")
    assert comparisons.worst_cases(read).empty
    assert comparisons.seed_scores(read).empty
    tables.require_scores(tiny_study)


@pytest.mark.parametrize("clean", ["", "all"])
def test_the_prior_is_cleaned_up_as_the_study_says(clean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior of two islands of each label: with `largest_component` the smaller one goes."""
    made = tiny_config()
    made.arms = default.pick_arms("prior")
    made.evaluate.largest_component = clean
    scores = np.zeros((16, 16, 3), np.float32)
    scores[..., 0] = 1
    scores[1:6, 1:6, 1] = scores[12:14, 12:14, 1] = 2
    scores[9:14, 1:7, 2] = scores[1:3, 12:15, 2] = 2
    seen: list[np.ndarray] = []
    score = metrics.case_metrics
    monkeypatch.setattr(prior, "fit_prior", lambda labels, members, overlapping: scores)

    def seeing(predicted: np.ndarray, *args: object, **options: object) -> object:
        seen.append(predicted)
        return score(predicted, *args, **options)

    monkeypatch.setattr(metrics, "case_metrics", seeing)
    run_stages(made, tmp_path, stages=("train", "evaluate"), progress=silent)
    sizes = (25, 30) if clean else (25 + 4, 30 + 6)
    assert {tuple(np.bincount(labels.ravel())[1:]) for labels in seen} == {sizes}


# ------------------------------------------------------------------------------------------- what scores are still of


@pytest.fixture
def copied(tiny_study: Path, tmp_path: Path) -> Path:
    workdir = tmp_path / "study"
    shutil.copytree(tiny_study, workdir, ignore=shutil.ignore_patterns("figures"))
    return workdir


def rerun(workdir: Path, **fields: object) -> None:
    run_stages(changed(**fields), workdir, stages=("evaluate",), progress=silent)


def retrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the networks of all checkpoints were others than they are."""
    read = checkpoint.networks_of
    monkeypatch.setattr(
        checkpoint, "networks_of", lambda *given: {step: f"other {mark}" for step, mark in read(*given).items()}
    )


def test_networks_that_were_trained_anew_are_scored_and_measured_anew(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (part, *_) = sorted(copied.glob("train/*/*/cases.csv"))
    scores = part.read_bytes()
    files.write_table(part, files.read_table(part).assign(dsc=0.123))
    rerun(copied)
    assert part.read_bytes() != scores, "of the same networks, a table that is as it was written stays"
    retrained(monkeypatch)
    with pytest.warns(UserWarning, match="its networks were trained anew since they were scored"):
        rerun(copied)
    assert part.read_bytes() == scores
    planned = run_stages(tiny_config(), copied, stages=(), progress=silent)
    done = files.read_json(copied / "analysis" / "n0_fold0" / probe_stage.DONE)
    assert done != probe_stage._measured_of(planned, 0, 0)
    files.write_json(part.parent / score_stage.NETWORKS, {})  # as an earlier version left it
    rerun(copied)
    assert part.read_bytes() == scores


def test_pictures_are_of_the_cases_that_are_asked_for(copied: Path) -> None:
    def shown() -> dict[str, bytes]:
        entries = files.read_list(copied / "results" / "examples.json")
        arrays = files.read_arrays(copied / "results" / "examples.npz")
        return {entry["case"]: arrays[f"image_{index}"].tobytes() for index, entry in enumerate(entries)}

    before = shown()
    rerun(copied, report__examples=2)
    both = shown()
    assert (len(before), len(both)) == (1, 2)
    assert before.items() <= both.items()
    assert len(set(both.values())) == 2


def test_scores_of_shorter_budgets_are_made_anew_or_gone_without(tmp_path: Path) -> None:
    copied, one = tmp_path / "study", {"evaluate__budget_tests": True, "arms": default.pick_arms("scratch")}
    run_stages(changed(**one), copied, stages=("train", "evaluate"), progress=silent)
    (part, *_) = sorted(copied.glob("train/*/*/cases_2.csv"))
    scores, budget = part.read_bytes(), (copied / "results" / "budget.csv").read_bytes()
    part.write_bytes(scores + b"x")
    with pytest.warns(UserWarning, match=r"cases_2\.csv is damaged"):
        rerun(copied, **one)
    assert (part.read_bytes(), (copied / "results" / "budget.csv").read_bytes()) == (scores, budget)
    shutil.rmtree(part.parent / "checkpoints" / "2")
    rerun(copied, **one)
    assert (copied / "results" / "budget.csv").read_bytes() == budget, "scores of networks that are gone stay"
    manifest.remove(part)
    manifest.remove(part.parent / "cases.csv")
    with pytest.warns(UserWarning, match="the networks of step 2 are gone, and are not scored"):
        rerun(copied, **one)
    assert not part.exists()
    assert len(files.read_table(copied / "results" / "budget.csv"))
