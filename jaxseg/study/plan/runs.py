"""Which runs an arm has: its seeds, train sizes and folds, or crossed ids of its random streams."""

from __future__ import annotations

import dataclasses
import itertools

from jaxseg.settings import ArmSettings, StudySettings
from jaxseg.streams import STREAMS, stream_id
from jaxseg.types import RunKey


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its key, the ids that feed its random streams, and where its weights come from."""

    key: RunKey
    init_id: int
    order_id: int
    subset_id: int
    init: str
    rate: float
    source: RunKey | None
    """The source network it starts from."""

    @property
    def ids(self) -> dict[str, int]:
        """Ids of the random streams, as columns of tables."""
        return {"init_id": self.init_id, "order_id": self.order_id, "subset_id": self.subset_id}

    def name(self, *, with_rate: bool = False) -> str:
        """For logs: arm, variant, the rate where runs differ in it alone, and seed."""
        rate = f"/lr_{self.rate:g}" if with_rate else ""
        return f"{self.key.arm}/{self.key.variant()}{rate}/seed_{self.key.seed}"


def crossed_seed(ids: dict[str, int]) -> int:
    """The seed number of a crossed run, of which three digits each are the ids of init, order and subset.

    >>> crossed_seed({"init": 3, "order": 0, "subset": 12})
    1003000012
    """
    digits = "".join(f"{ids[stream]:03d}" for stream in STREAMS)
    return int(f"1{digits}")


def _ids_of_seeds(study: StudySettings, arm: ArmSettings) -> list[tuple[int, dict[str, int]]]:
    """Seed numbers with the id of every stream."""
    if not arm.cross:
        seeds = [base + arm.seed_offset for base in study.seeds]
        return [(seed, {s: stream_id(seed, s, vary=arm.vary, base_seed=study.base_seed) for s in STREAMS})
                for seed in seeds]  # fmt: skip
    fixed = dict.fromkeys(STREAMS, study.base_seed)
    crossed = [fixed | dict(zip(arm.cross, ids, strict=True)) for ids in
               itertools.product(arm.cross_ids, repeat=len(arm.cross))]  # fmt: skip
    return [(crossed_seed(ids), ids) for ids in crossed]


def target_runs(study: StudySettings, arm: ArmSettings, source_name: str | None) -> list[Run]:
    """Runs of an arm on the target task, by train size, fold and seed.

    Args:
        study: Its seeds and variants.
        arm: The arm.
        source_name: Arm name of its source networks; None where it has none. A run starts from the network of its own
            seed (of its init id where ids are crossed), or from the base seed's where `pretrain.share` is `one`.
    """
    runs = []
    variants = itertools.product(arm.train_cases, range(study.target.folds), _ids_of_seeds(study, arm))
    for size, fold, (seed, ids) in variants:
        own = ids["init"] if arm.cross else seed
        source = None
        if source_name is not None:
            source = RunKey(source_name, 0, 0, own if arm.pretrain.share == "per_seed" else study.base_seed)
        key = RunKey(arm.name, size, fold, seed)
        runs.append(Run(key, ids["init"], ids["order"], ids["subset"], arm.init, arm.optim.lr, source))
    return runs


def trial_runs(study: StudySettings, arm: ArmSettings, source_name: str | None) -> list[Run]:
    """Runs that try each rate of `optim.lr_grid` on each seed of `optim.lr_seeds`, for every variant of an arm."""
    trials = dataclasses.replace(arm, seed_offset=0, cross=(), cross_ids=())
    runs = target_runs(dataclasses.replace(study, seed_ids=arm.optim.lr_seeds), trials, source_name)
    return [dataclasses.replace(run, rate=rate) for rate in arm.optim.lr_grid for run in runs]


def source_run(key: RunKey, rate: float) -> Run:
    """A source network's run. It varies in everything: `vary` is about the target's runs."""
    return Run(key, key.seed, key.seed, key.seed, "random", rate, None)
