"""A finished study, read from its workdir: parameters, predictions, activations, tables. No accelerator is needed."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from jaxseg import data, paths, workdirs
from jaxseg.buckets.reading import local_copy
from jaxseg.data.cases import CaseArrays
from jaxseg.manifest import DamagedError
from jaxseg.settings import StudySettings, parse
from jaxseg.settings.kinds import nearest
from jaxseg.study import files, record, recorded_runs
from jaxseg.study.arm import Arm
from jaxseg.study.plan.binding import check_unchanged, read_binding
from jaxseg.study.predict import scoring_options
from jaxseg.study.record import StudyRecord
from jaxseg.study.workdir import read_config
from jaxseg.types import UserError


@dataclasses.dataclass(frozen=True)
class FinishedStudy:
    """A study read from its workdir by `load`."""

    workdir: Path
    config: Any
    """The resolved ConfigDict."""
    settings: StudySettings
    record: StudyRecord
    """study.json: plan, versions, device, timing, exclusions."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms."""
        return tuple(self.record.arms)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed ids, without the arms' offsets."""
        return self.settings.seeds

    def arm(self, name: str, *, train_cases: int | None = None, fold: int | None = None) -> Arm:
        """Returns one arm in one variant.

        Args:
            name: One of `arms`.
            train_cases: The training set size (0 stands for all cases); required if there are several.
            fold: The fold; required if there are several.

        Raises:
            UserError: If there is no such arm or variant, or several match.
        """
        if name not in self.arms:
            raise UserError(f"no arm {name!r}{nearest(name, self.arms)} Arms: {', '.join(self.arms)}")
        settings = next(arm for arm in self.settings.arms if arm.name == name)
        if settings.kind == "prior":
            raise UserError(f"arm {name!r} has no network; its scores are in table('cases')")
        runs = [run for run in self.record.runs_of("train") if run.arm == name]
        for field, value in (("train_cases", train_cases), ("fold", fold)):
            allowed = sorted({getattr(run, field) for run in runs})
            if value is None and len(allowed) > 1:
                raise UserError(f"arm {name!r} has several values of {field}: choose one of {allowed}")
            chosen = allowed[0] if value is None else value
            if chosen not in allowed:
                raise UserError(f"arm {name!r} has no {field} = {chosen}; it has {allowed}")
            runs = [run for run in runs if getattr(run, field) == chosen]
        by_seed = {run.seed: run for run in runs}
        return Arm(self.workdir, self.settings, settings, self.record.target, by_seed)

    def cases(self, part: str = "test", *, fold: int = 0) -> tuple[str, ...]:
        """Returns the names of the target's cases in a part (`train`, `val` or `test`) of a fold.

        Raises:
            UserError: If there is no such part or fold.
        """
        splits = self.record.target.splits
        if part not in ("train", "val", "test") or not 0 <= fold < len(splits):
            raise UserError(f"no {part!r} cases of fold {fold}; parts: train, val, test; folds: 0 to {len(splits) - 1}")
        return getattr(splits[fold], part)

    def case(self, name: str, *, fold: int = 0) -> CaseArrays:
        """Returns a case of the target as networks see it: `image` `[*spatial, channels]`, `label` and `record`.

        `Arm.predict` and `Arm.activations` take its `image`. It comes from the store that the networks were trained
        from. Where that is gone, the first call prepares the data anew, if it still is what it was.

        Raises:
            UserError: If there is no such case or fold, or there is no store and the data changed or is not there.
        """
        known = [known for part in ("train", "val", "test") for known in self.cases(part, fold=fold)]
        if name not in known:
            raise UserError(f"no case {name!r}{nearest(name, known)} Cases: {', '.join(sorted(known))}")
        prepared = dataclasses.replace(self._prepared_target(), windows=self.record.target.windows[fold])
        return data.load_case(prepared, name)

    def _prepared_target(self) -> data.PreparedTask:
        """The target as it was when training began, from its store or, where that is gone or damaged, prepared anew."""
        task, ndim, known = self.settings.target, self.settings.model.ndim, self.record.stores["target"]
        store_dir = self._store_dir()
        if (store_dir / known).exists():
            with contextlib.suppress(DamagedError):
                return data.open_prepared(task, store_dir=store_dir, name=known)
        self._check_unchanged()
        prepared = data.prepare_task(task, ndim=ndim, store_dir=store_dir, known=known)
        # A store is named after all that it is made of, behind the name of the data.
        if prepared.directory.name.rpartition("-")[2] != known.rpartition("-")[2]:
            raise UserError(
                f"the networks were trained from the prepared store {known}, which is not in {store_dir}, and the data "
                f"({task.data}) now gives another, {prepared.directory.name}: the data or the way that it is prepared "
                f"has changed. Put the store back, or read the image with Arm.read, which takes any file"
            )
        return prepared

    def _store_dir(self) -> Path:
        return paths.expand(self.settings.runtime.store_dir or self.workdir / "stores")

    def _check_unchanged(self) -> None:
        """Compares the target's data, where it is on this machine, with what it was when training began."""
        bound, settings = read_binding(self.workdir), self.settings
        if bound is not None:
            was, store_dir = bound.tasks["target"], self._store_dir()
            check_unchanged("the target", was, settings.target, ndim=settings.model.ndim, store_dir=store_dir)

    def references(self, *, fold: int | None = None) -> tuple[data.References, frozenset[str], dict[str, Any]]:
        """Returns what `study.score.folder.score_folder` needs to score label maps that were made elsewhere.

        Args:
            fold: The fold whose test cases are scored; None for those of all folds.

        Returns:
            The references of the target task, its test cases, and the study's scoring options.

        Raises:
            UserError: If there is no such fold, or the data is no longer what the networks were trained on.
        """
        splits = self.record.target.splits
        if fold is not None and not 0 <= fold < len(splits):
            raise UserError(f"no fold {fold}; the study has {len(splits)}, from 0")
        chosen = splits if fold is None else [splits[fold]]
        target, settings = self.settings.target, self.settings.evaluate
        labels, regions = () if target.regions else self.record.target.labels, target.regions
        axes, cache = len(target.window), self._store_dir()
        self._check_unchanged()
        references = data.open_references(target.data, ndim=axes, cache=cache, labels=labels, regions=regions)
        return (
            references,
            frozenset(name for split in chosen for name in split.test),
            scoring_options(target, settings),
        )

    def table(self, name: str) -> pd.DataFrame:
        """Reads a table of the results: `cases`, `curves`, `summary`, `comparisons`, `convergence`, ...

        Raises:
            UserError: If there is no such table.
        """
        results = self.workdir / "results"
        path = files.find_table(results, workdirs.inside(results, name).name)
        if path is None:
            known = sorted(entry.name.removesuffix(".gz").removesuffix(".csv") for entry in results.glob("*.csv*"))
            raise UserError(f"no table {name!r} in {results}; it has {', '.join(known) or 'none'}")
        return files.read_table(path)


def load(workdir: str | Path) -> FinishedStudy:
    """Opens the study in a workdir. Nothing is unpickled, and parameters are read on demand.

    Args:
        workdir: Folder of the study; or, as text, its address in a bucket (`gs://...`, `s3://...`), from which it is
            brought to this user's cache as far as it has changed since the last time.

    Raises:
        UserError: If the workdir holds no study.
    """
    workdir = local_copy(workdir)
    workdirs.check_links(workdir)
    found = record.read(workdir)
    if found is None:
        raise UserError(f"no study in {workdir}: it has no study.json; give the --workdir of a study")
    saved = read_config(workdir)
    if saved is None:
        raise UserError(
            f"no study in {workdir}: it has no config.json; copy the workdir whole, or give the command that began the "
            f"study, which writes it anew"
        )
    study = parse(saved)
    recorded_runs.compare(found, study, workdir)
    return FinishedStudy(workdir, saved, study, found)
