"""Writes what a published study found, for its page to include: the answer, means of all arms, claims and controls.

    python -m tools.draw_study docs/studies/NAME docs/studies/OTHER

Each folder, filled by `tools.publish_study`, gets a file `found.md`. A page shows it by

    ```{include} NAME/found.md
    ```

`--check` writes nothing and fails if a file is not as it would be written.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from jaxseg.reserved import MEAN
from jaxseg.study import files, record
from jaxseg.study.claims.rules import CONFIDENCE
from jaxseg.study.record import StudyRecord
from jaxseg.study.score.comparisons import baseline_of
from jaxseg.text import listing
from jaxseg.types import UserError
from tools.draw_claims import line, write_or_check

NAME = "found.md"


def found(folder: Path) -> str:
    """What a study found, as Markdown.

    Raises:
        UserError: If the folder holds no published study.
    """
    study = record.read(folder, any_format=True)
    tables = {name: files.find_table(folder / "results", name) for name in ("claims", "summary", "comparisons")}
    if study is None or tables["claims"] is None or tables["summary"] is None:
        raise UserError(f"{folder} holds no published study: fill it with `python -m tools.publish_study`")
    claims, summary = files.read_table(tables["claims"]), files.read_table(tables["summary"])
    differences = None if tables["comparisons"] is None else files.read_table(tables["comparisons"])
    figure = folder / "figures" / "differences.svg"
    parts = [
        *answers(claims),
        how(study),
        "\n".join(means(study, summary, differences)),
        *([shown(figure, folder)] if figure.exists() else []),
        "\n".join(verdicts(claims)),
        *(["\n".join(controls(claims))] if (claims["role"] == "control").any() else []),
        *lacking(claims),
    ]
    return "\n\n".join(parts) + "\n"


def answers(claims: pd.DataFrame) -> Iterator[str]:
    """The first sentences of the page, one for each start, and the confidence of their limits where it is not 95 %."""
    own = claims[claims["role"] == "answer"]
    for text in own["reason"].unique():
        yield f"> {text}"
    level = own["confidence"].min()
    if not math.isnan(level) and not math.isclose(level, CONFIDENCE):
        yield f"Brackets in this answer hold limits of {100 * level:.4g} %, the level of the look that it was made at."


def how(study: StudyRecord) -> str:
    """Seeds, steps, the rate and the time, in a sentence."""
    runs = study.runs_of("train")
    baseline = baseline_of(list(study.arms))
    rates = sorted({run.lr for run in runs if run.arm == baseline})
    steps = sorted({run.steps for run in runs if run.arm == baseline})
    seeds = {run.seed for run in runs if run.arm == baseline}
    trials = sorted({run.seed for run in study.runs_of("select")})
    chosen = f", chosen on seed {', '.join(map(str, trials))}" if trials else ""
    averaged = f"; weights averaged over the last {study.average:.0%} of the steps" if study.average else ""
    folds = "; each seed is tested on one of the folds, which rotate" if "fold" in study.vary else ""
    networks = len(runs) + len(study.runs_of("pretrain"))
    return (
        f"{len(seeds)} seeds, {_listed(steps, '{:,}')} steps at a rate of {_listed(rates, '{:g}')}{chosen}{averaged}"
        f"{folds}. {networks} networks in {study.seconds / 60:.0f} min on {_device(study)}, "
        f"{_code(study)}, jax {study.versions.get('jax')}."
    )


def _code(study: StudyRecord) -> str:
    """The code that trained, and that which scored and judged where it was another."""
    judged = (study.git_commit or "unknown")[:7]
    trained = list(dict.fromkeys((made.git_commit or "unknown")[:7] for made in study.trained_on)) or [judged]
    return f"jaxseg {' and '.join(trained)}" + ("" if trained == [judged] else f", judged by {judged}")


def _listed(numbers: list[float] | list[int], form: str) -> str:
    return " or ".join(form.format(number) for number in numbers)


def _device(study: StudyRecord) -> str:
    if study.device is None:
        return "an unknown device"
    kind = {"cpu": "CPU"}.get(study.device.kind, study.device.kind)
    return f"{study.device.count} {kind} device{'' if study.device.count == 1 else 's'}"


def means(study: StudyRecord, summary: pd.DataFrame, differences: pd.DataFrame | None) -> Iterator[str]:
    """A table of mean DSC by arm and training set size, with the difference to the baseline."""
    own = summary[(summary["label"] == MEAN) & (summary["metric"] == "dsc")]
    own = own.sort_values("fold").drop_duplicates(["arm", "train_cases"])  # all folds together, where there are several
    sizes = sorted(own["train_cases"].unique(), key=lambda size: (size == 0, size))
    baseline = baseline_of(list(study.arms))
    yield line(("arm", *("all training cases" if size == 0 else f"{size} training cases" for size in sizes)))
    yield line(["---"] * (1 + len(sizes)))
    for arm in study.arms:
        cells = [_cell(own, differences, str(arm), baseline, size) for size in sizes]
        yield line((str(arm), *cells))
    yield f"\nMean DSC, its difference to {baseline}, and in brackets its 95 % limits for new seeds and patients."


def _cell(own: pd.DataFrame, differences: pd.DataFrame | None, arm: str, baseline: str, size: int) -> str:
    row = own[(own["arm"] == arm) & (own["train_cases"] == size)]
    if row.empty:
        return ""
    text = f"{row['mean'].iloc[0]:.3f}"
    if differences is None:
        return text
    pair = differences[
        (differences["metric"] == "dsc")
        & (differences["label"] == MEAN)
        & (differences["train_cases"] == size)
        & (differences["arm_a"] == arm)
        & (differences["arm_b"] == baseline)
    ].sort_values("fold")
    if pair.empty or math.isnan(pair["ci_low"].iloc[0]):
        return text
    first = pair.iloc[0]
    return f"{text}, {first['mean_diff']:+.3f} [{first['ci_low']:.3f}, {first['ci_high']:.3f}]"


def shown(figure: Path, folder: Path) -> str:
    """The figure of differences."""
    address = f"{folder.name}/figures/{figure.name}"
    return (
        f"```{{figure}} {address}\n:alt: Differences in mean DSC of all arms to scratch\n\n"
        "Differences in mean DSC, with intervals for new seeds and patients; the grey band is 0.01 to either side.\n```"
    )


def verdicts(claims: pd.DataFrame) -> Iterator[str]:
    """A table of the claims that the study can speak of."""
    own = claims[claims["role"] == "claim"].drop_duplicates("claim")
    yield line(("claim", "", "verdict", "why"))
    yield line(["---"] * 4)
    for row in own.fillna({"needs": "", "reason": ""}).to_dict("records"):
        needs = f" To decide it: {row['needs']}." if row["needs"] and row["needs"] not in row["reason"] else ""
        yield line((row["claim"], row["statement"], f"**{row['verdict']}**", f"{row['reason']}.{needs}"))
    looks = [(rows["look"].iloc[0], rows) for _, rows in own[own["look"].notna()].groupby("look", sort=True)]
    least = [f"{100 * rows['confidence'].min():.4g} % or more" for _, rows in looks]
    if len(looks) == 1:
        yield f"\nJudged at the look of {looks[0][0]:.0f} seeds: limits in this table are of {least[0]}."
    elif looks:
        judged = [
            f"{listing(list(rows['claim']))} at the look of {look:.0f} seeds, with limits of {level}"
            for (look, rows), level in zip(looks, least, strict=True)
        ]
        yield f"\nJudged: {'; '.join(judged)}."


def controls(claims: pd.DataFrame) -> Iterator[str]:
    """A table of the comparisons that were run on controls as well."""
    own = claims[claims["role"] == "control"].drop_duplicates(["claim", "arm", "baseline"])
    yield line(("control", "claim", "verdict", "quantity", "value [95 %]"))
    yield line(["---"] * 5)
    for row in own.to_dict("records"):
        limits = "" if math.isnan(row["ci_low"]) else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        yield line((row["arm"], row["claim"], row["verdict"], row["quantity"], f"{row['value']:.3f}{limits}"))


def lacking(claims: pd.DataFrame) -> Iterator[str]:
    """The claims that the study does not speak of, in a sentence."""
    names = claims.loc[claims["role"] == "lacking", "claim"].unique()
    if len(names):
        yield f"Not asked here: {', '.join(names)}."


def main() -> None:
    """Writes the files, or says which are not as they would be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path, metavar="FOLDER", help="folders of published studies")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file differs")
    asked = parser.parse_args()
    try:
        made = {folder / NAME: found(folder) for folder in asked.studies}
    except UserError as error:
        parser.exit(2, f"{error}\n")
    write_or_check(made, parser, check=asked.check)


if __name__ == "__main__":
    main()
