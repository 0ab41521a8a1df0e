"""Arms that start from a network of someone else's: judged as transfer is, and what it may have seen said each time."""

from __future__ import annotations

import pandas as pd
import pytest

from jaxseg.study import claims
from jaxseg.study.claims.rules import of_checkpoint
from jaxseg.study.claims.study_tables import StudyTables
from simulated import tables as sim
from tests.study.whole_study import rng

UNKNOWN = of_checkpoint("")
SIZES = (8, 0)


def of_checkpoint_study(*others: str, seed: int = 0, trained_on: str = "", target: str = "hippo") -> StudyTables:
    """A study of `scratch`, `given` and other arms, at two training set sizes."""
    arms = ("scratch", "given", *others)
    levels = {arm: dict.fromkeys(SIZES, 0.75 if arm == "scratch" else 0.78) for arm in arms}
    given = sim.arm(pretrain_steps=None, one_source=True, init="pretrained", seen=of_checkpoint(trained_on))
    draw = rng(seed)
    curves = sim.curves(draw, {arm: 1.0 if arm == "scratch" else 1.6 for arm in arms}, gain=0.005, noise=0.002)
    return sim.study(
        sim.record(*arms, given=given, target=target),
        cases=sim.cases(draw, levels, spread=(0.002, 0.002, 0.005)),
        curves=sim.at_sizes(curves, SIZES),
    )


@pytest.fixture(scope="module")
def alone() -> StudyTables:
    return of_checkpoint_study()


def test_a_checkpoint_is_judged_in_the_place_of_transfer(alone: StudyTables) -> None:
    table = claims.claims(alone)
    judged = table[table["role"] == "claim"].drop_duplicates("claim").set_index("claim")
    assert set(judged.loc[["C1", "C4b"], "arm"]) == {"given"}
    assert judged.loc["C1", "verdict"] == "supported"
    assert judged.loc["C1", "reason"].startswith("of this checkpoint alone: ")
    assert (judged["reason"].str.count(UNKNOWN) == 1).all()
    other_size = table[table["role"] == "other size"]
    assert len(other_size)
    assert (other_size["reason"] == UNKNOWN).all()
    (answer,) = table.loc[table["role"] == "answer", "reason"].unique()
    assert answer.startswith("This checkpoint on hippo, ")
    assert UNKNOWN[0].upper() + UNKNOWN[1:] + ". Scratch" in answer


def test_beside_transfer_a_checkpoint_has_verdicts_of_its_own() -> None:
    table = claims.claims(of_checkpoint_study("transfer", "given_other", trained_on="128 mice"))
    judged = table[table["role"] == "claim"]
    assert set(judged["arm"]) == {"transfer"}
    assert not judged["reason"].str.contains("checkpoint").any()
    beside = table[table["role"] == "control"].drop_duplicates(["arm", "claim"]).set_index(["arm", "claim"])
    assert set(beside.index.get_level_values("arm")) == {"given", "given_other"}
    first = beside.loc[("given", "C4b"), "reason"]
    assert first.startswith("a checkpoint of someone else's in the place of transfer; of this checkpoint alone: ")
    assert first.endswith(of_checkpoint("128 mice"))
    assert "128 mice" not in beside.loc[("given_other", "C4b"), "reason"]


def test_beside_transfer_a_checkpoint_has_the_levels_of_the_looks_and_nothing_before_the_first() -> None:
    study = of_checkpoint_study("transfer", trained_on="128 mice")
    seeds = claims.judging.number_of_seeds(study)

    def judged_at(*looks: int) -> pd.Series:
        table = claims.claims(study._replace(record=study.record._replace(looks=looks)))
        own = table[(table["role"] == "control") & (table["arm"] == "given") & (table["claim"] == "C4b")]
        return own.drop_duplicates("claim").iloc[0]

    early = judged_at(2 * seeds, 4 * seeds)
    assert (early["verdict"], early["confidence"]) == ("undecided", pytest.approx(1 - 0.0054))
    assert f"the first look is at {2 * seeds} seeds, has {seeds}" in early["reason"]
    first = judged_at(seeds, 2 * seeds)
    assert (first["verdict"], first["look"]) == ("contradicted", seeds)
    assert first["confidence"] == pytest.approx(1 - 0.0054)


def test_over_targets_the_studies_of_such_checkpoints_are_named() -> None:
    studies = {f"s{i}": claims.tell(of_checkpoint_study(seed=i, target=f"t{i}")) for i in range(5)}
    table = claims.over_studies(studies).drop_duplicates("claim").set_index("claim")
    for claim in ("C1", "C2", "C4b"):
        for name in studies:
            assert f"{name}: {UNKNOWN}" in table.loc[claim, "reason"]
    assert set(table.loc[["C1", "C2", "C4b"], "arm"]) == {"given"}
    for claim in ("C1", "C4b"):
        assert table.loc[claim, "verdict"] in ("supported", "contradicted")
        assert table.loc[claim, "reason"].startswith("of one source network each alone: ")
    assert not table["exploratory"].any()


def test_what_a_checkpoint_was_trained_on_is_repeated_as_declared() -> None:
    assert of_checkpoint("T2 images of mice").startswith(
        "this checkpoint was trained on T2 images of mice, as declared;"
    )
    assert "unknown" in UNKNOWN
