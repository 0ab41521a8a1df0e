"""Lists the runs of an arm: its seeds, train sizes and folds, or crossed ids of its random streams."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from jaxseg.settings import ArmSettings, StudySettings
from jaxseg.streams import STREAMS, stream_id
from jaxseg.types import RunKey, UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its key, the ids of its random streams, and the origin of its weights."""

    key: RunKey
    init_id: int
    order_id: int
    subset_id: int
    init: str
    rate: float
    source: RunKey | None
    """The source network that the run starts from."""

    @property
    def ids(self) -> dict[str, int]:
        """The ids of the random streams, as columns of tables."""
        return {"init_id": self.init_id, "order_id": self.order_id, "subset_id": self.subset_id}

    def name(self, *, with_rate: bool = False) -> str:
        """The run's name in logs: arm, variant, learning rate if runs differ only in it, and seed."""
        rate = f"/lr_{self.rate:g}" if with_rate else ""
        return f"{self.key.arm}/{self.key.variant()}{rate}/seed_{self.key.seed}"


def crossed_seed(ids: dict[str, int]) -> int:
    """Returns the seed number of a crossed run, whose groups of three digits are the ids of init, order and subset.

    >>> crossed_seed({"init": 3, "order": 0, "subset": 12})
    1003000012
    """
    digits = "".join(f"{ids[stream]:03d}" for stream in STREAMS)
    return int(f"1{digits}")


class _Seed(NamedTuple):
    """A replicate of an arm."""

    number: int
    place: int
    """Which fold it is tested on where folds rotate; an arm's offset seeds are tested on those of the seeds they
    stand beside."""
    ids: dict[str, int]
    """The id of every stream."""


def _seeds_of(study: StudySettings, arm: ArmSettings) -> list[_Seed]:
    if not arm.cross:
        numbers = [(base + arm.seed_offset, base) for base in study.seeds]
        streams = [{s: stream_id(seed, s, vary=arm.vary, base_seed=study.base_seed) for s in STREAMS}
                   for seed, _ in numbers]  # fmt: skip
        return [_Seed(*number, ids) for number, ids in zip(numbers, streams, strict=True)]
    fixed = dict.fromkeys(STREAMS, study.base_seed)
    crossed = [fixed | dict(zip(arm.cross, ids, strict=True)) for ids in
               itertools.product(arm.cross_ids, repeat=len(arm.cross))]  # fmt: skip
    return [_Seed(crossed_seed(ids), ids["init"], ids) for ids in crossed]


def folds_rotate(study: StudySettings) -> bool:
    """Returns whether each seed is tested on one fold, which rotates over seeds, instead of on all folds."""
    return "fold" in study.vary


def target_runs(study: StudySettings, arm: ArmSettings, source_name: str | None) -> list[Run]:
    """Returns the runs of an arm on the target task, by train size, fold and seed.

    Args:
        study: The study's seeds and variants.
        arm: The arm.
        source_name: Arm name of its source networks; None if it has none. A run starts from the network of its own
            seed (of its init id where ids are crossed), or from the base seed's where `pretrain.share` is `one`. With
            `pretrain.runs_per_source` = n, n consecutive seeds start from one network.
    """
    runs = []
    rotate, settings, rate = folds_rotate(study), arm.pretrain, arm.optim.lr * arm.optim.lr_factor
    for size, fold, (seed, place, ids) in itertools.product(
        arm.train_cases, range(study.target.folds), _seeds_of(study, arm)
    ):
        if rotate and place % study.target.folds != fold:
            continue
        source = None
        if source_name is not None:
            own = (ids["init"] if arm.cross else seed) // settings.runs_per_source
            # A network of this study's own, for one seed, must not have seen what that seed is tested on; one that
            # comes from elsewhere, or that all seeds share, has no fold.
            of_fold = rotate and settings.share == "per_seed" and not settings.from_workdir
            shared = settings.share != "per_seed"
            source = RunKey(source_name, 0, fold if of_fold else 0, study.base_seed if shared else own)
        key = RunKey(arm.name, size, fold, seed)
        runs.append(Run(key, ids["init"], ids["order"], ids["subset"], arm.init, rate, source))
    return runs


def trial_runs(study: StudySettings, arm: ArmSettings, source_name: str | None) -> list[Run]:
    """Returns runs that try each rate of `optim.lr_grid` on each seed of `optim.lr_seeds`, by variant of an arm.

    With `optim.lr_sizes` = `largest` these are of the study's largest training set alone, which the arm may not have.
    An arm that takes a multiple of the rate of others tries none, and the largest is that of an arm that tries some.
    """
    if not arm.tries_rates:
        return []
    all_sizes = {size for other in study.arms for size in other.train_cases if other.tries_rates}
    largest = max(all_sizes, key=lambda size: (size == 0, size), default=0)  # 0 stands for all cases
    sizes = tuple(size for size in arm.train_cases if arm.optim.lr_sizes == "every" or size == largest)
    trials = dataclasses.replace(arm, seed_offset=0, cross=(), cross_ids=(), train_cases=sizes)
    runs = target_runs(dataclasses.replace(study, seed_ids=arm.optim.lr_seeds), trials, source_name)
    return [dataclasses.replace(run, rate=rate) for rate in arm.optim.lr_grid for run in runs]


def source_run(key: RunKey, rate: float) -> Run:
    """Returns the run of a source network. All its streams vary, since `vary` is about the target's runs."""
    return Run(key, key.seed, key.seed, key.seed, "random", rate, None)


# ---------------------------------------------------------------------------------------- runs that would be the same


def drawn_cases(run: Run) -> Hashable:
    """Returns what two runs of a size and fold share if they draw the same training cases; of all cases none is drawn.

    That a size is the whole training set is known once the data is split, see `training_cases` of `jobs.make_plan`.
    """
    return run.subset_id if run.key.train_cases else None


def check_runs_differ(
    arms: Iterable[tuple[ArmSettings, Hashable, bool, Sequence[Run]]], cases: Callable[[Run], Hashable]
) -> None:
    """Refuses seeds that would be one run several times: their spread would be 0 and their number a pretence.

    Runs of two arms may be the same, such as those on the diagonal of a crossed arm, unless the arms have different
    seed offsets: a placebo that repeats the runs of its arm shows no chance.

    Args:
        arms: Every arm, the program that trains it, whether any of the weights that it starts with are drawn, and its
            runs.
        cases: See `training_cases` of `jobs.make_plan`.

    Raises:
        UserError: Two runs have the same start, batches, training cases and source network.
    """
    known: dict[Hashable, tuple[ArmSettings, Run]] = {}
    for arm, program, drawn, runs in arms:
        of_arm = (program, arm.init, arm.optim, arm.pretrain.adapt_channels)
        own: dict[Hashable, Run] = {}
        for run in runs:
            start, place = (run.source, run.init_id if drawn else None), (run.key.train_cases, run.key.fold)
            decisive = (*start, *place, run.order_id, cases(run))
            if (other := own.setdefault(decisive, run)) is not run:
                raise _same_run(arm, run, f"seeds {other.key.seed} and {run.key.seed} would be the same run", drawn)
            placed, other = known.setdefault((of_arm, decisive), (arm, run))
            if placed.seed_offset != arm.seed_offset:
                what = f"seed {run.key.seed} would be the same run as seed {other.key.seed} of arm {placed.name!r}"
                raise _same_run(arm, run, f"{what}, despite its seed_offset of {arm.seed_offset}", drawn)


def _same_run(arm: ArmSettings, run: Run, what: str, drawn: bool) -> UserError:
    """The mistake of two runs that are one: why they are, and what would make two of them."""
    alike = "all weights that they draw are the same" if drawn else "all parameters come from one source network"
    streams = f"cross = {','.join(arm.cross)!r}" if arm.cross else f"vary = {','.join(arm.vary)!r}"
    of_all = " ('subset' draws none where a run trains on all)" if "subset" in (arm.cross or arm.vary) else ""
    mend = "Cross streams that make a difference" if arm.cross else "Add 'order' to vary"
    if run.source is not None and arm.pretrain.share == "one":
        mend += ", or set pretrain.share = 'per_seed'"
    return UserError(
        f"arm {arm.name!r}: {what}: {alike}, and with {streams} they see the same batches of the same cases{of_all}. "
        f"{mend}"
    )
