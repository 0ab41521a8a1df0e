"""Verdicts over several targets: means of what was measured, and not counts of verdicts."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from jaxseg.analysis.random_effects import welch_p
from jaxseg.report.charts.style import NARROW_INCHES, WIDE_INCHES
from jaxseg.report.sections.targets import claim_forest, gain_forest, gain_rows, targets_blocks
from jaxseg.study import claims
from jaxseg.study.claims import differing, over_targets, pooling, targets
from jaxseg.study.claims.differing import targets_to_differ, task_of
from jaxseg.study.claims.evidence import Pair, gather
from jaxseg.study.claims.findings import CONTRADICTED, DEPENDS, SUPPORTED, UNDECIDED, Quantity
from jaxseg.study.claims.rules import NOISE_LEVELS
from jaxseg.study.claims.told import Told
from jaxseg.text import interval, signed
from simulated import tables as sim
from tests.study.whole_study import changed, rng, verdict

LITTLE = (0.002, 0.002, 0.005)


def gains_study(seed, target, gain, sizes=(0,), source="blobs", level=0.75, seeds=8):
    levels = {"scratch": dict.fromkeys(sizes, level), "transfer": dict.fromkeys(sizes, level + gain)}
    record = sim.record(*levels, target=target)._replace(source=source)
    return sim.study(record, cases=sim.cases(rng(seed), levels, spread=LITTLE, seeds=seeds))


def many(*gains, **more):
    return {f"s{i}": gains_study(i, f"t{i}", gain, **more) for i, gain in enumerate(gains)}


def told(studies):
    return {name: claims.tell(study) for name, study in studies.items()}


def over_studies(studies, **more):
    return claims.over_studies(told(studies), **more)


def target_table(studies):
    return claims.target_table(told(studies))


def independent_targets(studies):
    return targets.independent_targets(told(studies))


def over(table, claim):
    return verdict(table, claim, "over studies")


def test_the_mean_decides_and_needs_four_targets():
    three = over(over_studies(many(0.0, 0.0, 0.0)), "C4b")
    assert three["verdict"] == UNDECIDED
    assert three["reason"].startswith("needs at least 4 targets that can speak of it, has 3")
    four = over(over_studies(many(0.0, 0.001, 0.0, -0.001)), "C4b")
    assert four["verdict"] == SUPPORTED
    assert four["quantity"] == "gain, mean over 4 targets"
    assert four["ci_high"] < 0.01
    assert over(over_studies(many(0.03, 0.031, 0.03, 0.029)), "C4b")["verdict"] == CONTRADICTED


def test_the_gain_of_a_target_is_one_number_whichever_study_is_listed_first():
    """Two studies of one target: value, limits and degrees of freedom are those of their average, in either order."""
    studies = many(-0.006, 0.0, 0.004, 0.006) | {
        "sure": gains_study(5, "t9", 0.02, seeds=32),
        "unsure": gains_study(6, "t9", 0.07),
    }
    orders = [studies, dict(reversed(list(studies.items())))]
    found = [over_studies(given).query("claim == 'C2'").set_index("quantity") for given in orders]
    values = [table.sort_index()[["value", "ci_low", "ci_high"]].to_numpy(float) for table in found]
    np.testing.assert_allclose(*values, rtol=1e-9)
    low, value, high = found[0].loc["gain, t9", ["ci_low", "value", "ci_high"]].astype(float)
    assert low < value < high
    own = [claims.tell(studies[name]).claims["C2"].quantities[0] for name in ("sure", "unsure")]
    assert value == pytest.approx(np.mean([one.value for one in own]))
    assert (high - low) / 2 > min((one.high - one.low) / 2 for one in own)


def test_targets_that_differ_are_an_answer():
    found = over(over_studies(many(0.06, 0.0, -0.03, 0.04, 0.02)), "C4b")
    assert found["verdict"] == DEPENDS
    assert found["reason"].startswith("targets differ: tau 0.0")
    # Where the mean decides all the same, that they differ is said beside.
    found = over(over_studies(many(0.06, 0.05, 0.03, 0.04, 0.07)), "C4b")
    assert found["verdict"] == CONTRADICTED
    assert found["reason"].startswith("targets differ")


def test_more_targets_of_no_effect_support_no_more_often():
    draw = rng(8)
    wrong = {}
    for count in (4, 16):
        found = []
        for _ in range(60):
            by = {str(i): [quantity_of(draw, 0.1 * draw.normal() + np.log(1.0))] for i in range(count)}
            found.append(pooling.over_mean("ratio", by)[0].low > 1)
        wrong[count] = np.mean(found)
    assert max(wrong.values()) <= 0.1  # nominal 0.025, and 60 draws


def quantity_of(draw, log):
    """A ratio known with an error of 0.1."""
    at = log + 0.1 * draw.normal()
    low, high = (np.exp(at + side * 2.365 * 0.1) for side in (-1, 1))
    return Quantity("ratio", np.exp(at), low, high, df=7, confidence=0.95, n_seeds=8, key="ratio", log=True)


def test_rows_of_the_forest_plot():
    studies = many(0.0, 0.01, 0.02, 0.03)
    found = target_table(studies)
    assert tuple(found.columns) == over_targets.TARGET_COLUMNS
    gains = found[(found["claim"] == "C2") & (found["quantity"] == "gain")].set_index("role")
    assert gains.loc["study", "target"].tolist() == ["t0", "t1", "t2", "t3"]
    mean, prediction = gains.loc["mean"], gains.loc["prediction"]
    assert mean["value"] == pytest.approx(gains.loc["study", "value"].mean(), abs=0.001)
    assert prediction["ci_low"] < mean["ci_low"] < mean["ci_high"] < prediction["ci_high"]
    assert gains.loc["tau", "value"] == pytest.approx(np.std([0, 0.01, 0.02, 0.03], ddof=1), rel=0.3)


@pytest.fixture(scope="module")
def tabulated():
    """over_targets.csv of eight targets, the last as easy as the first: the gain follows how hard they are."""
    return target_table(harder(0.2))


def test_the_meta_regression_has_its_rows(tabulated):
    slope = tabulated[(tabulated["claim"] == "C3") & (tabulated["role"] == "slope")]
    assert slope[["quantity", "study"]].values.tolist() == [["gain", ""]]
    row = slope.iloc[0]
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert row["value"] == pytest.approx(0.2, abs=0.03)
    hard = tabulated[tabulated["quantity"] == "difficulty"].set_index("target")["value"]
    assert hard.tolist() == pytest.approx([0.15 + 0.05 * i for i in range(8)], abs=0.03)
    own = tabulated[(tabulated["claim"] == "C3") & (tabulated["role"] == "study")]
    assert own.groupby("target")["quantity"].agg(list).tolist() == [["difficulty", "gain"]] * 8
    assert own["study"].tolist() == [str(i) for i in range(8) for _ in range(2)]
    gains = own[own["quantity"] == "gain"]
    assert gains["value"].tolist() == pytest.approx([0.01 * i for i in range(8)], abs=0.01)
    assert (gains["ci_low"] < gains["value"]).all()


def test_harder_tasks_are_drawn_from_the_easiest_on(tabulated):
    (axes,) = claim_forest(tabulated, "C3", {}, width=WIDE_INCHES).axes
    texts = [text.get_text() for text in axes.texts]
    errors = [float(text.partition(", ")[2]) for text in texts if text.startswith("t")]
    assert len(errors) == 8
    assert errors == sorted(errors)
    assert "slope on difficulty (C3)" in texts


def drawn(table, width=WIDE_INCHES):
    figure = gain_forest(gain_rows(table), width=width)
    (axes,) = figure.axes
    return axes, [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])
def test_the_forest_plot_shows_targets_mean_prediction_and_slope(tabulated, width):
    axes, texts = drawn(tabulated, width)
    gains = tabulated[(tabulated["claim"] == "C2") & (tabulated["quantity"] == "gain")].set_index("role")
    names = ["mean", "another target", "spread of targets, tau", "slope on difficulty (C3)"]
    assert [text for text in texts if text in {*names, *(f"t{i}" for i in range(8))}] == [
        *(f"t{i}" for i in range(8)),
        *names,
    ]
    mean, prediction = gains.loc["mean"], gains.loc["prediction"]
    (diamond,) = axes.patches[-1:]
    assert diamond.get_xy()[:4, 0].tolist() == [mean["ci_low"], mean["value"], mean["ci_high"], mean["value"]]
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 6]
    assert [list(bar) for bar in bars] == [[prediction["ci_low"], prediction["ci_high"]]]
    assert f"{signed(mean['value'])} {interval(mean['ci_low'], mean['ci_high'])}" in texts


def test_studies_of_one_target_stand_together_and_few_targets_have_no_mean(tabulated):
    three = target_table(many(0.0, 0.01) | {"twice": gains_study(9, "t1", 0.02)})
    _, texts = drawn(three)
    names = ["t0", "s0", "t1", "s1", "twice"]
    assert [text for text in texts if text in names] == names
    assert "mean" not in texts
    (finding, _) = targets_blocks(three)
    assert finding.found == "2 targets can speak of it; a mean needs 4."
    (finding, chart) = targets_blocks(tabulated)
    assert "on average over 8 targets" in finding.found
    assert "at a slope of +0.2" in finding.found
    assert "t7" in chart.alt
    assert list(targets_blocks(three[three["claim"] != "C2"])) == []


def test_two_phases_of_the_same_hearts_are_one_target():
    both = {"ed": gains_study(0, "cardiac_ed_mr", 0.0), "es": gains_study(1, "cardiac_es_mr", 0.0)}
    # Cases of these studies have the same names, but no groups: names of cases say nothing.
    assert set(independent_targets(both).values()) == {"cardiac_ed_mr", "cardiac_es_mr"}
    hearts = {
        name: changed(study, "cases", case=study.tables["cases"]["group"] + f"_{name}") for name, study in both.items()
    }
    assert set(independent_targets(hearts).values()) == {"cardiac_ed_mr + cardiac_es_mr"}
    found = over(over_studies({**hearts, **many(0.0, 0.0)}), "C4b")
    assert "has 3" in found["reason"]
    liver = changed(hearts["ed"], "cases", group="liver " + hearts["ed"].tables["cases"]["group"])
    three = hearts | {"liver": liver._replace(record=liver.record._replace(target="liver"))}
    assert len(set(independent_targets(three).values())) == 2


def test_two_studies_of_one_target_are_no_surer_than_one():
    one = pooling.of_target([quantity_of(rng(0), 0.2)])
    two = pooling.of_target([quantity_of(rng(0), 0.2), quantity_of(rng(0), 0.2)])
    assert two == pytest.approx(one)
    more = pooling.of_target([quantity_of(rng(0), 0.2), dataclasses.replace(quantity_of(rng(0), 0.2), df=2.0)])
    assert more.df == 2.0


def test_gains_of_five_targets_differ_or_do_not():
    found = over(over_studies(many(0.05, 0.0, 0.02, 0.07, -0.02)), "C2")
    assert found["verdict"] == SUPPORTED
    assert found["quantity"] == "tau of the gain over 5 targets"
    alike = over(over_studies(many(*(0.02,) * 8)), "C2")
    assert alike["verdict"] == CONTRADICTED
    assert "needs at least 5 targets, has 4" in over(over_studies(many(0.05, 0.0, 0.02, 0.07)), "C2")["reason"]


def test_how_many_targets_would_show_that_gains_differ():
    def cells(*values):
        return [differing.Cell(Quantity("gain", value), 0.015**2, 14.0) for value in values]

    spread = cells(0.0, 0.02, 0.04, -0.01, 0.03)
    words = re.fullmatch(r"about (\d+) more targets, if they differ as these do", targets_to_differ(spread, 0.05))
    assert words
    y = np.array([cell.gain.value for cell in spread])
    p = [welch_p(y, np.full(5, 0.015**2), np.full(5, 14.0), among=5 + int(words[1]) - less) for less in (0, 1)]
    assert p[0] <= 0.05 < p[1]
    assert targets_to_differ(cells(0.02, 0.021, 0.02, 0.019, 0.02), 0.05) == ""


def test_a_pilot_of_few_seeds_is_left_out_and_named():
    sound = many(0.05, 0.0, 0.02, 0.07, -0.02)
    pilot = gains_study(9, "lung", 0.0)
    cases = pilot.tables["cases"]
    few = pilot._replace(tables={"cases": cases[cases["seed"] < 4]})
    for claim in ("C2", "C4b"):
        found = over(over_studies(sound | {"pilot": few}), claim)
        assert "left out: pilot (needs at least 8 seeds, has 4" in found["reason"]
        two = over(over_studies(sound | {"pilot": few, "another": few}), claim)
        assert "left out: pilot, another (needs at least 8 seeds, has 4" in two["reason"]
        assert found["value"] == over(over_studies(sound), claim)["value"]


def test_a_claim_that_says_can_needs_one_target_at_a_shared_level(study):
    one = study._replace(tables={name: study.tables[name] for name in ("similarity", "pairs")})
    other = one._replace(record=study.record._replace(target="nerve"))
    found = over_studies({"a": one, "b": other})
    assert over(found, "C10")["verdict"] == SUPPORTED
    assert over(found, "C10")["reason"].startswith("of 2 targets 2 support at level 0.025 (hippo, nerve)")
    assert over(found, "C9")["verdict"] == UNDECIDED


def harder(slope):
    """Eight targets whose gain follows how hard they are."""
    found = {}
    for i in range(8):
        found[str(i)] = gains_study(i, f"t{i}", slope * 0.05 * i, level=0.85 - 0.05 * i, seeds=16)
    return found


def test_harder_tasks_over_targets_with_noise_levels_beside():
    noisy = {level: gains_study(i, "hippo", 0.01 + 0.02 * i) for i, level in enumerate(NOISE_LEVELS)}
    found = over(over_studies(harder(0.2), noisy=noisy), "C3")
    assert found["verdict"] == SUPPORTED, found["reason"]
    assert "over noise levels the gain rises" in found["reason"]
    assert over(over_studies(harder(-0.2), noisy=noisy), "C3")["verdict"] == CONTRADICTED
    less = over(over_studies(harder(0.2), noisy={0.25: noisy[0.25]}), "C3")
    assert less["verdict"] == SUPPORTED
    assert "needs noise levels 0.25, 0.5, 1.0, 2.0; lacks 0.5, 1.0, 2.0" in less["reason"]
    few = over(over_studies({k: v for k, v in harder(0.2).items() if k < "7"}), "C3")
    assert "needs at least 8 targets of one source and training set size, has 7" in few["reason"]


def targets_mute(study):
    """A study that is left out at every size."""
    return study._replace(tasks={size: Told(left_out="needs at least 8 seeds") for size in study.tasks})


def test_harder_tasks_are_those_of_the_source_and_size_that_most_targets_share():
    one = {str(i): gains_study(i, f"t{i}", 0.01, sizes=(8, 16)) for i in range(3)}
    others = {
        "another source": gains_study(3, "t0", 0.01, sizes=(8, 16), source="shapes"),
        "another size": gains_study(4, "t1", 0.01),
        "small": gains_study(5, "t3", 0.01, sizes=(8,)),
    }
    found = told(others | one)
    named = {name: study.record.target for name, study in (others | one).items()}
    expected = {f"t{i}": found[str(i)].tasks[8] for i in range(3)} | {"t3": found["small"].tasks[8]}
    assert targets.of_one_source(found, named) == expected
    del found["small"]
    assert targets.of_one_source(found, named) == {f"t{i}": found[str(i)].tasks[16] for i in range(3)}
    assert targets.of_one_source({}, {}) == {}
    mute = targets_mute(found["0"])
    speaking = Told((Quantity("gain", 0.1, key="gain"),))
    study = mute._replace(tasks=dict.fromkeys(mute.tasks, speaking))
    chosen = targets.of_one_source({"pilot": mute, "study": study}, {"pilot": "t0", "study": "t0"})
    assert chosen == {"t0": speaking}, "a pilot that cannot speak takes no target's place"


def _of_checkpoint(study, name="given"):
    """The same study with its source networks from a checkpoint of someone else's."""
    arms = {name if arm == "transfer" else arm: found for arm, found in study.record.arms.items()}
    arms[name] = arms[name]._replace(seen="what it saw is unknown", source="blobs")
    cases = study.tables["cases"]
    return sim.study(study.record._replace(arms=arms), cases=cases.assign(arm=cases["arm"].replace("transfer", name)))


def test_harder_tasks_are_asked_about_with_the_arm_that_each_study_is_about():
    found = {name: _of_checkpoint(study) for name, study in harder(0.2).items()}
    noisy = {level: _of_checkpoint(gains_study(i, "hippo", 0.01 + 0.02 * i)) for i, level in enumerate(NOISE_LEVELS)}
    row = over(over_studies(found, noisy=noisy), "C3")
    assert row["verdict"] == SUPPORTED, row["reason"]
    assert "over noise levels the gain rises" in row["reason"]
    assert "t0: what it saw is unknown" in row["reason"]
    mixed = over(over_studies(found | {"0": harder(0.2)["0"]}), "C3")
    assert "needs at least 8 targets of one source and training set size, has 7" in mixed["reason"]


def test_difficulty_is_never_measured_on_the_seeds_of_the_gain():
    # Scratch's luck, not its task, is all that differs between these targets: unlucky seeds make gains.
    draw, slopes = rng(0), []
    for _ in range(12):
        tasks = []
        for i in range(8):
            levels = {"scratch": {0: 0.75}, "transfer": {0: 0.77}}
            cases = sim.cases(draw, levels, spread=(0.05, 0.0, 0.001))
            evidence = gather(sim.study(sim.record(*levels, target=str(i)), cases=cases))
            tasks.append(task_of(evidence, 0, Pair()))
        slopes.append(np.polyfit([t.difficulty for t in tasks], [t.gain.value for t in tasks], 1)[0])
    assert np.mean(slopes) < 0.4  # on the same seeds the slope is near 1


def test_difficulty_is_measured_on_seeds_of_other_source_networks():
    levels = {"scratch": {0: 0.75}, "transfer": {0: 0.77}}
    cases = sim.cases(rng(0), levels, spread=(0.0, 0.0, 0.0), seeds=16)
    sources = {seed: seed // 2 for seed in range(16)}
    # Every other network is set aside, with both of its runs.
    aside = (cases["seed"] // 2 % 2 == 1) & (cases["arm"] == "scratch")
    cases = cases.assign(dsc=cases["dsc"] + 0.1 * aside)
    record = sim.record(*levels, transfer=sim.arm(sources=sources))
    task = task_of(gather(sim.study(record, cases=cases)), 0, Pair())
    assert 1 - task.difficulty == pytest.approx(cases.loc[aside, "dsc"].mean())
    assert task.gain.value == pytest.approx(0.02)
    assert task.gain.n_seeds == 4
    assert task.doubts[0].endswith("has 4")
    assert task.doubts[1] == "half of them measure the difficulty, which an arm scratch_b would"


@pytest.mark.parametrize(
    ("placebo", "doubt"),
    [
        ({}, ""),
        ({"rates": {0: (1e-3,)}}, "exploratory, learning rates differ between what is compared: 0.001 (scratch_b)"),
        ({"training": "another batch"}, "scratch_b, which measures the difficulty, was not trained with the settings"),
    ],
    ids=["alike", "rate", "settings"],
)
def test_difficulty_is_that_of_networks_trained_as_the_baseline(placebo, doubt):
    levels = {"scratch": {0: 0.75}, "scratch_b": {0: 0.75}, "transfer": {0: 0.77}}
    cases = sim.cases(rng(0), levels, spread=LITTLE)
    same = {"rates": {0: (3e-3,)}, "training": "alike"}
    arms = {name: sim.arm(**same) for name in ("scratch", "transfer")}
    record = sim.record(*levels, **arms, scratch_b=sim.arm(**{**same, **placebo}))
    task = task_of(gather(sim.study(record, cases=cases)), 0, Pair())
    assert len(task.doubts) == bool(doubt)
    assert all(found.startswith(doubt) for found in task.doubts)


def test_points_of_a_sweep_with_noise_are_the_noise_levels_of_one_target():
    plain = {"a": gains_study(0, "hippo", 0.0), "b": gains_study(1, "nerve", 0.0)}
    levels = {"c": ("nerve", 0.25), "d": ("hippo", 0.25), "e": ("nerve", 0.5)}
    records = {name: study.record for name, study in plain.items()}
    noisy = {name: records["a"]._replace(target=target, noise=noise) for name, (target, noise) in levels.items()}
    assert claims.made_noisy(records | noisy) == (["a", "b"], {0.25: "c", 0.5: "e"})
    assert claims.made_noisy(records) == (["a", "b"], {})
    other = noisy["c"]._replace(source="liver", noise=0.25)
    assert claims.made_noisy(records | noisy | {"f": other})[1] == {0.25: "c", 0.5: "e"}, "of one source"
