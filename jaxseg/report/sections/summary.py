"""The page's first section: what was compared, the plain answer, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from jaxseg.report.blocks import (
    Block,
    Cell,
    KeyFigure,
    Missing,
    Prose,
    Section,
    Strip,
    Styles,
    Table,
    TableGroup,
    arm_name,
    sentence,
)
from jaxseg.report.sections.claims import claims_blocks
from jaxseg.report.sections.figures import titles
from jaxseg.report.sections.notices import notices
from jaxseg.report.shown import (
    RULE_CONFIDENCE,
    Speed,
    baseline_of,
    lost_arms,
    main_variant,
    overall_dsc,
    seeds_per_arm,
    speeds,
    uses_pretraining,
)
from jaxseg.report.tables import Tables, of_variant, rows_of, scored_runs, variants_of
from jaxseg.report.text import (
    MISSING,
    TIMES,
    cases,
    count,
    interval,
    limit,
    listing,
    number,
    p_value,
    plain,
    plural,
    ratio,
    signed,
)
from jaxseg.study.claims.rules import TARGET_FRACTION

_WORDS = (
    "An arm is one way of training: how the weights start and which of them are trained. A seed repeats an arm with "
    "other random numbers. An interval says how far the mean might lie from the truth, given how runs differ."
)


def summary_section(tables: Tables, styles: Styles) -> Section:
    """Say what was compared and what came out."""
    answer = _answer(tables, styles) if tables.comparisons is not None else _single_arm(tables, styles)
    blocks = (
        *answer,
        *claims_blocks(tables, styles),
        *notices(tables),
        *_effects(tables, styles),
        Prose(_WORDS),
        _arms_table(tables, styles),
    )
    return Section("summary", "Summary", blocks)


def standfirst(tables: Tables) -> str:
    """Return what was compared in a sentence or two."""
    study = tables.study
    target = study.get("target") or {}
    source_name, target_name = _task_names(tables)
    least, most = seeds_per_arm(study)
    sizes = {int(run["train_cases"]) for run in scored_runs(study)}
    named = [count(n) for n in sorted(sizes - {0})] + (["all"] if 0 in sizes else [])
    trained = f"{listing(named)} training cases" if named else "its training cases"
    pretrained = any(uses_pretraining(study, arm) for arm in tables.arms)
    first = (
        "Does starting from a network pretrained on <b>{source}</b> help to segment <b>{target}</b>?"
        if pretrained
        else "How well do networks learn to segment <b>{target}</b>?"
    )
    tested = target.get("cases", {}).get("test")
    return sentence(
        first + " {arms}, {seeds} each, trained on {trained}{tested}.",
        source=source_name,
        target=target_name,
        arms=plural(len(tables.arms), "arm"),
        seeds=plural(least, "seed") if least == most else f"{least} to {most} seeds",
        trained=trained,
        tested=f" and scored on {plural(int(tested), 'test case')} held out from training" if tested else "",
    )


def _task_names(tables: Tables) -> tuple[str, str]:
    """Names of source and target; of two tasks called the same, what sets the source apart."""
    source, target = ((tables.study.get(task) or {}).get("name") or f"the {task} task" for task in ("source", "target"))
    if source != target:
        return source, target
    data = [(tables.config.get(task) or {}).get("data") for task in ("source", "target")]
    return f"{source} itself" if data[0] == data[1] else f"another {source}", target


def seed_ids(study: dict[str, Any]) -> list[int]:
    """Return the seeds of the target task's runs."""
    return sorted({int(run["seed"]) for run in scored_runs(study)})


# ------------------------------------------------------------------------------------------------------ the answer


def _answer(tables: Tables, styles: Styles) -> Iterator[Block]:
    assert tables.comparisons is not None
    overall = overall_dsc(tables.comparisons)
    if overall.empty:
        yield Missing("comparisons.csv holds no comparison of mean DSC, so there is no plain answer.")
        return
    variants = variants_of(overall)
    heading = titles(variants)
    main = main_variant(variants)
    rows = of_variant(overall, main)
    against = rows["arm_b"] == baseline_of(tables)
    rows = rows[against] if against.any() else rows
    arm = _arm_of_interest(list(rows["arm_a"]), tables)
    row = next(rows_of(rows[rows["arm_a"] == arm]))
    speed = speeds(tables).get((arm, main.train_cases))
    yield Strip(_key_figures(row, speed, tables.confidence))
    yield Prose(_plain_answer(row, speed, heading[main], tables, styles))


def _arm_of_interest(candidates: list[str], tables: Tables) -> str:
    """Return `transfer`, else the first arm that starts from a source network, else the first."""
    pretrained = [arm for arm in candidates if uses_pretraining(tables.study, arm)]
    return "transfer" if "transfer" in candidates else (pretrained or candidates)[0]


def _key_figures(row: Any, speed: Speed | None, confidence: float) -> tuple[KeyFigure, ...]:
    sure = f"{100 * confidence:g} % interval"
    gained = _to(sure, row.ci_low, row.ci_high, 3)
    figures = [KeyFigure(f"{signed(row.mean_diff)} DSC", f"{row.arm_a} against {row.arm_b}", gained)]
    if speed is not None and speed.n_censored + speed.n_censored_baseline < 2 * speed.n_runs:
        sure = f"{100 * RULE_CONFIDENCE:g} % interval"
        pairs = (
            (speed.ratio, speed.ci_low, speed.ci_high, "at the target, in training steps"),
            (speed.total_ratio, speed.total_ci_low, speed.total_ci_high, "at the target, pretraining counted"),
        )
        for value, low, high, meaning in pairs:
            if math.isfinite(value):
                value, low, high, word = _sooner(value, low, high)
                sure_ratio = _to(sure, low, high, 1 if high < 10 else 0)
                figures.append(KeyFigure(ratio(value) + TIMES, f"{word} {meaning}", sure_ratio))
    return tuple(figures)


def _sooner(value: float, low: float, high: float) -> tuple[float, float, float, str]:
    """Turn a ratio of speeds below 1 around, so that the number is always how many times."""
    if 0.95 < value < 1.05:
        return value, low, high, "as soon"
    return (value, low, high, "sooner") if value > 1 else (1 / value, 1 / high, 1 / low, "later")


def _to(what: str, low: float, high: float, digits: int) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "one seed, so no interval"
    return f"{what} {limit(low, digits)} to {limit(high, digits)}"


def _plain_answer(row: Any, speed: Speed | None, heading: str, tables: Tables, styles: Styles) -> str:
    gain = sentence(
        "<b>{arm} here: {diff} DSC {interval}</b> against {baseline}, trained on {heading}{certainty}.",
        arm=arm_name(row.arm_a, styles),
        diff=signed(row.mean_diff),
        interval=interval(row.ci_low, row.ci_high),
        baseline=row.arm_b,
        heading=heading,
        certainty=_certainty(row.ci_low, row.ci_high, tables.confidence),
    )
    return gain if speed is None else gain + " " + _speed_sentence(speed)


def _certainty(low: float, high: float, confidence: float) -> str:
    sure = f"{100 * confidence:g} %"
    if math.isnan(low) or math.isnan(high):
        return "; one seed gives no interval, so this may be chance"
    if low > 0:
        return f"; the {sure} interval lies above zero"
    if high < 0:
        return f"; the {sure} interval lies below zero"
    return f"; the {sure} interval includes zero, so neither can be said to be better"


def _speed_sentence(speed: Speed) -> str:
    n = speed.n_runs
    if speed.n_censored == n and speed.n_censored_baseline == n:
        return sentence(
            "No run of {arm} or {baseline} reached the target validation DSC.", arm=speed.arm, baseline=speed.baseline
        )
    value, low, high, word = _sooner(speed.ratio, speed.ci_low, speed.ci_high)
    text = sentence(
        "It reaches the target {ratio} times {word} {interval}",
        ratio=ratio(value),
        word=word,
        interval=interval(low, high, 1),
    )
    if math.isfinite(speed.total_ratio):
        value, low, high, word = _sooner(speed.total_ratio, speed.total_ci_low, speed.total_ci_high)
        text += sentence(
            "; with the {steps} steps of pretraining counted, {ratio} times {word} {interval}",
            steps=count(speed.pretrain_steps),
            ratio=ratio(value),
            word=word,
            interval=interval(low, high, 1),
        )
    text += "."
    censored = (
        (speed.n_censored_baseline, speed.baseline, "the length"),
        (speed.n_censored, speed.arm, "twice the length"),
    )
    for missing, arm, length in censored:
        if missing:
            pattern = " {missing} of {n} {arm} runs never reached it and count as {length} of training."
            text += sentence(pattern, missing=missing, n=n, arm=arm, length=length)
    return text


def _effects(tables: Tables, styles: Styles) -> Iterator[Block]:
    """Every comparison in a table, where there is more than the one of the answer."""
    overall = None if tables.comparisons is None else overall_dsc(tables.comparisons)
    if overall is None or len(overall) < 2:
        return
    yield _effects_table(overall, speeds(tables), tables, styles)


def _effects_table(
    overall: pd.DataFrame, by_key: dict[tuple[str, int], Speed], tables: Tables, styles: Styles
) -> Table:
    variants = variants_of(overall)
    heading = titles(variants)
    one_base = overall["arm_b"].nunique() == 1
    has_speed = bool(by_key) and one_base
    groups = []
    for variant in variants:
        own = of_variant(overall, variant)
        order = {arm: i for i, arm in enumerate(tables.arms)}
        own = own.sort_values("arm_a", key=lambda names: names.map(order), kind="stable")
        rows = []
        for row in rows_of(own):
            cells = [
                Cell(arm_name(row.arm_a, styles)),
                *(() if one_base else (Cell(row.arm_b),)),
                Cell(signed(row.mean_diff), interval(row.ci_low, row.ci_high)),
                Cell(p_value(row.p)),
            ]
            if has_speed:
                speed = by_key.get((row.arm_a, variant.train_cases))
                cells += [_ratio_cell(speed, total=False), _ratio_cell(speed, total=True)]
            rows.append(tuple(cells))
        groups.append(TableGroup(f"Trained on {heading[variant]}" if len(variants) > 1 else "", tuple(rows)))
    speed_head = ("Speed to target", "Pretraining counted") if has_speed else ()
    head = ("Arm", *(() if one_base else ("Against",)), "DSC difference", "p, these cases", *speed_head)
    against = plain(overall["arm_b"].iloc[0]) if one_base else "another"
    note = (
        f" Speed, by the rule of claim C1: steps of the compared arm until the target ({TARGET_FRACTION:g} of what it "
        f"reaches), divided by this arm's, with {100 * RULE_CONFIDENCE:g} % intervals; above 1 is sooner."
        if has_speed
        else ""
    )
    caption = f"Each arm against {against}, with {100 * tables.confidence:g} % intervals.{note}"
    return Table(caption, head, tuple(groups), text_columns=(0,) if one_base else (0, 1))


def _ratio_cell(speed: Speed | None, *, total: bool) -> Cell:
    if speed is None:
        return Cell(MISSING)
    if speed.n_censored == speed.n_censored_baseline == speed.n_runs:
        return Cell("none reached it")
    value, low, high = (
        (speed.total_ratio, speed.total_ci_low, speed.total_ci_high)
        if total
        else (speed.ratio, speed.ci_low, speed.ci_high)
    )
    return Cell(ratio(value) + TIMES if math.isfinite(value) else MISSING, interval(low, high, 2))


def _single_arm(tables: Tables, styles: Styles) -> Iterator[Block]:
    lost = lost_arms(tables.study)
    if tables.summary is None:
        if lost:
            yield Missing("Every run of every arm diverged, so there are no scores and no result to state.")
        else:
            yield Missing("There is no summary.csv and no comparisons.csv, so there is no result to state yet.")
        return
    overall = overall_dsc(tables.summary)
    if overall.empty:
        yield Missing("summary.csv holds no mean DSC, so there is no result to state.")
        return
    why = (
        f"Every run of {listing(lost)} diverged" if lost else "There is no comparisons.csv with rows in it"
    )  # a baseline that is lost, or nothing but a baseline
    row = next(rows_of(of_variant(overall, main_variant(variants_of(overall)))))
    text = sentence(
        "{arm} reaches a mean DSC of <b>{mean}</b>, trained on {size}. {why}, so nothing is compared with it.",
        why=why,
        arm=arm_name(row.arm, styles),
        mean=f"{number(row.mean)} {interval(row.ci_low, row.ci_high)}".strip(),
        size=cases(row.train_cases),
    )
    yield Prose(text)


# ------------------------------------------------------------------------------------------------------------ the arms


def _arms_table(tables: Tables, styles: Styles) -> Table:
    rows = []
    for arm, settings in tables.study.get("arms", {}).items():
        is_prior = settings.get("kind") == "prior"
        parameters, trainable = settings.get("parameters"), settings.get("trainable")
        rows.append(
            (
                Cell(arm_name(arm, styles)),
                Cell("no network: mean label map" if is_prior else _start(str(settings.get("init", "")))),
                Cell("nothing" if is_prior else _trained(str(settings.get("freeze", "")))),
                Cell(
                    MISSING if trainable is None else count(trainable), f"of {count(parameters)}" if parameters else ""
                ),
            )
        )
    head = ("Arm", "Weights start as", "Trained", "Trained parameters")
    return Table(
        "The arms and their marks in all figures.", head, (TableGroup("", tuple(rows)),), text_columns=(0, 1, 2)
    )


def _start(init: str) -> str:
    named = {
        "random": "random",
        "pretrained": "pretrained",
        "mean_var": "random, with the pretrained mean and variance",
    }
    if init.startswith("pretrained:"):
        return f"pretrained where {init.removeprefix('pretrained:')} matches, the rest random"
    return named.get(init, init)


def _trained(freeze: str) -> str:
    named = {"none": "all", "encoder": "decoder and head", "decoder": "encoder and head", "all_but_head": "head"}
    return f"all but {freeze.removeprefix('regex:')}" if freeze.startswith("regex:") else named.get(freeze, freeze)
