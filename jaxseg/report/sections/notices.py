"""What the reader must not miss: what limits the page's answers."""

from __future__ import annotations

from collections.abc import Iterator

from jaxseg.analysis.statistics import MIN_SEEDS, minimum_p
from jaxseg.report.blocks import Block, Notice, sentence
from jaxseg.report.charts.style import BASELINE_ARM
from jaxseg.report.sections.rates import end_of_grid
from jaxseg.report.shown import lost_arms, seeds_per_arm
from jaxseg.report.tables import Tables
from jaxseg.study.record import RecordedRun
from jaxseg.text import listing, number, plural


def notices(tables: Tables) -> Iterator[Block]:
    """Say what limits every answer of the page: few seeds, lost runs, rates at an end, one source network."""
    n, _ = seeds_per_arm(tables.study)
    if 0 < n < MIN_SEEDS:
        yield Notice(
            sentence(
                "<b>{seeds}: too few for a verdict.</b> The study's rules ask for at least {least}; with {seeds} a "
                "sign-flip p-value cannot fall below {smallest}. Read the intervals as a first impression.",
                seeds=plural(n, "seed"),
                least=MIN_SEEDS,
                smallest=number(minimum_p(n)),
            )
        )
    lost_whole = lost_arms(tables.study)
    if lost_whole and len(lost_whole) < len(tables.arms):
        yield Notice(
            sentence(
                "<b>Every run of {arms} diverged</b>, so that {so}.",
                arms=listing(lost_whole),
                so="there is nothing to compare the other arms with"
                if BASELINE_ARM in lost_whole
                else "there are no scores of it and no comparison with it",
            )
        )
    # Trials of rates may diverge: those rates are not chosen.
    diverged = [run for run in tables.study.diverged if run.kind != "select"]
    if diverged:
        names = [f"{run.arm} seed {run.seed}" for run in diverged[:5]]
        names += [f"{len(diverged) - 5} more"] if len(diverged) > 5 else []
        yield Notice(
            sentence(
                "<b>{n} diverged</b> ({names}).{heirs} {scored} Learning curves leave them out of means.",
                n=plural(len(diverged), "run"),
                names=listing(names),
                heirs=_heirs(diverged),
                scored=_fate_of(diverged, tables),
            )
        )
    yield from end_of_grid(tables)
    arms = tables.study.arms
    shared = [name for name, arm in arms.items() if arm.pretrain is not None and arm.pretrain.share == "one"]
    if shared:
        all_of_them = shared == [name for name, arm in arms.items() if arm.uses_source]
        yield Notice(
            sentence(
                "All seeds{of_arms} start from one and the same source network (<code>pretrain.share = one</code>): "
                "the intervals do not hold what another source network would have changed.",
                of_arms="" if all_of_them else f" of {listing(shared)}",
            )
        )


def _heirs(diverged: list[RecordedRun]) -> str:
    dead = {run.key for run in diverged}
    count = sum(run.source in dead for run in diverged)
    return f" Of these, {count} had no start, as the source network diverged." if count else ""


def _fate_of(diverged: list[RecordedRun], tables: Tables) -> str:
    if tables.cases is None:
        return ""
    columns = ["arm", "train_cases", "fold", "seed"]
    scored = set(tables.cases[columns].drop_duplicates().itertuples(index=False, name=None))
    n_scored = sum((run.arm, run.train_cases, run.fold, run.seed) in scored for run in diverged)
    if n_scored == len(diverged):
        return "The last weights they had are scored with the others."
    return "They have no scores." if not n_scored else f"{n_scored} of them are scored with the others."
