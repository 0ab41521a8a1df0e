"""A finished study, read from its workdir: parameters, predictions, activations, tables. No accelerator is needed."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from jaxseg import checkpoint, data, inference, paths, workdirs
from jaxseg.analysis.activations import features
from jaxseg.buckets.reading import local_copy
from jaxseg.data.cases import CaseArrays
from jaxseg.data.volumes import headers
from jaxseg.models import layer_names, make_model
from jaxseg.settings import ArmSettings, StudySettings, parse
from jaxseg.settings.kinds import nearest
from jaxseg.study import files, record, recorded_runs
from jaxseg.study.predict import Segmentation, classes_of, scoring_options, segment
from jaxseg.study.record import RecordedRun, RecordedTask, StudyRecord
from jaxseg.study.workdir import read_config
from jaxseg.types import Params, UserError


@dataclasses.dataclass(frozen=True)
class Arm:
    """One variant (train size, fold) of an arm of a loaded study."""

    workdir: Path
    study: StudySettings
    settings: ArmSettings
    target: RecordedTask
    """The target task as study.json describes it."""
    runs: dict[int, RecordedRun]
    """The arm's runs as study.json records them, keyed by seed."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed ids of the arm's runs."""
        return tuple(self.runs)

    @property
    def fold(self) -> int:
        """The fold whose training cases the arm's networks have seen."""
        return next(iter(self.runs.values())).fold

    @property
    def label_values(self) -> tuple[int, ...]:
        """The values that label files of the target task hold for classes 1, 2, ..."""
        return self.target.label_values

    def _place(self, seed: int) -> recorded_runs.Place:
        if seed not in self.runs:
            raise UserError(f"arm {self.settings.name!r} has no seed {seed}; its seeds are {self.seeds}")
        return recorded_runs.place_of(self.workdir, self.runs[seed])

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that have a checkpoint; step 0 is the start of training."""
        return checkpoint.saved_steps(self._place(self.seeds[0]).directory)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layer names that `activations` accepts, in forward order."""
        return layer_names(self.settings.model)

    def params(self, seed: int, step: int | str | None = None) -> Params:
        """Reads the parameters of one seed, and of no other, as a nested dict of NumPy arrays.

        Args:
            seed: One of `seeds`.
            step: One of `steps`; `best` for the step of the best validation, if `train.keep_best` kept it; None for
                the last.

        Raises:
            UserError: If there is no such seed or step, or no best parameters were kept.
        """
        directory, last, index = self._place(seed)
        if step == "best":
            return checkpoint.read_best(directory, last, index)[0]
        if isinstance(step, str):
            raise UserError(f"step {step!r}; allowed: one of {self.steps}, 'best', or None for the last")
        return checkpoint.read_seed(directory, last if step is None else step, index)

    def keep(self, seeds: Sequence[int] | None = None) -> None:
        """Reads the parameters of seeds at the last step, for the calls that follow with the same seeds.

        Raises:
            UserError: If there is no such seed, or its checkpoint is damaged.
        """
        self._stacked(seeds, None)

    def _stacked(self, seeds: Sequence[int] | None, step: int | None) -> Params:
        chosen = self.seeds if seeds is None else tuple(seeds)
        if not chosen:
            raise UserError(f"no seed asked for; arm {self.settings.name!r} has {self.seeds}")
        if (chosen, step) not in self._kept:
            # Not one read of all: seeds may lie in different chunks.
            stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(self.params(seed, step) for seed in chosen))
            self._kept.clear()
            self._kept[chosen, step] = stacked
        return self._kept[chosen, step]

    @functools.cached_property
    def _kept(self) -> dict[Any, Params]:
        # The parameters used last, so that a second image reads no checkpoint.
        return {}

    @functools.cached_property
    def _model(self) -> Any:
        overlapping, settings = self.target.regions is not None, self.settings
        return make_model(settings.model, settings.train.compute, classes=self.target.outputs, overlapping=overlapping)

    @functools.cached_property
    def _predict(self) -> Any:
        # Cached, so that a second image compiles nothing.
        return jax.jit(jax.vmap(inference.make_window_predict(self._model), in_axes=(0, None, None)))

    def read(self, image: Any) -> tuple[Float[np.ndarray, "*spatial channels"], Any]:
        """Prepares an image like the training data, and returns it with the geometry that puts a prediction back.

        Doubts about the image (voxels that are not numbers, no contrast, a header without an orientation) raise
        a warning and are kept in the geometry's `warnings`.

        Args:
            image: A path, one path a channel, a nibabel image, or a prepared array `[*spatial, channels]`, which is
                used as it is and has no geometry.

        Raises:
            UserError: If the image cannot be read, or its channels or axes are not those of the network.
        """
        if isinstance(image, np.ndarray | jax.Array):
            array = np.asarray(image, np.float32)
            axes = len(self.study.target.window)
            if array.ndim != axes + 1 or array.shape[-1] != self.target.channels:
                raise UserError(
                    f"a prepared array has shape [*spatial, channels] with {axes} spatial axes and "
                    f"{self.target.channels} channel(s), got {array.shape}"
                )
            return array, None
        array, geometry = data.read_image(
            image,
            task=self.study.target,
            ndim=self.settings.model.ndim,
            spacing_mm=self.target.spacing_mm,
            normalization=self.target.normalization,
            windows=self.target.windows[self.fold],
            channels=self.target.channels,
        )
        for text in headers.without_unit_notes(geometry.warnings):  # images made in Python seldom name a unit
            warnings.warn(text, data.ImageWarning, stacklevel=3)
        return array, geometry

    def _slabs(
        self, image: Float[np.ndarray, "*spatial channels"], seeds: Sequence[int] | None
    ) -> Iterator[Float[np.ndarray, "seed planes *rest classes"]]:
        """Class probabilities of a prepared array by sliding window, slab after slab along the first axis."""
        params = self._stacked(seeds, None)
        settings = self.study.evaluate

        def predict(windows: np.ndarray) -> np.ndarray:
            return np.asarray(self._predict(params, {}, windows))

        slabs = inference.predict_slabs(
            inference.by_slices(predict, self.study.target.slice_axis),
            [image],
            patch=self.study.target.window,
            overlap=settings.overlap,
            window_batch=settings.window_batch,
            flips=self.study.target.window_axes(settings.flips),
        )
        return (slab.probabilities for slab in slabs)

    def segment(
        self, image: Any, seeds: Sequence[int] | None = None, *, probabilities: bool = False
    ) -> tuple[Segmentation, Any]:
        """Predicts label maps of each seed and of their ensemble, and the voxel entropy over seeds.

        Args:
            image: See `read`.
            seeds: Some of `seeds`; None for all.
            probabilities: Whether the mean probabilities of the ensemble are returned too.

        Returns:
            Class indices and entropies on the input's own grid in canonical axes, and its geometry, with which
            `jaxseg.data.write_prediction` and `write_map` put them back; of a prepared array, its own grid and None.
        """
        array, geometry = self.read(image)
        slabs = self._slabs(array, seeds)
        clean = classes_of(self.study.evaluate.largest_component, self.target.labels)
        own = slabs if geometry is None else data.to_own_grid(slabs, geometry)
        return segment(own, clean=clean, keep_mean=probabilities, regions=self.target.regions), geometry

    def predict(
        self, image: Any, seeds: Sequence[int] | None = None, *, probabilities: bool = False
    ) -> Num[np.ndarray, "seed *spatial"]:
        """Predicts one label map of an image for each seed.

        Args:
            image: See `read`.
            seeds: Some of `seeds`; None for all.
            probabilities: Return class probabilities on the prepared grid instead, with a last axis of classes.

        Returns:
            Label maps on the grid of the input, in the order of its own axes, with the label values of dataset.json;
            of a prepared array, which has neither, class indices on its own grid.
        """
        if probabilities:
            return np.concatenate(list(self._slabs(self.read(image)[0], seeds)), axis=1)
        made, geometry = self.segment(image, seeds)
        if geometry is None:
            return made.labels
        maps = [data.to_nifti(one, geometry, label_values=self.label_values) for one in made.labels]
        return np.stack([np.asarray(one.dataobj) for one in maps])

    def activations(
        self,
        volume: Any,
        layers: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        *,
        step: int | None = None,
    ) -> dict[str, Float[np.ndarray, "seed *spatial channels"]]:
        """Computes the outputs of layers, after the nonlinearity, for the central patch of a volume.

        A network of slices sees the central slice.

        Args:
            volume: See `read`.
            layers: Some of `layers`; None for all.
            seeds: Some of `seeds`; None for all.
            step: One of `steps`; None for the last.
        """
        wanted = self.layers if layers is None else tuple(layers)
        for name in wanted:
            if name not in self.layers:
                raise UserError(f"no layer {name!r}{nearest(name, self.layers)} Layers: {', '.join(self.layers)}")
        array, _ = self.read(volume)
        window = self.study.target.window
        patch = np.zeros((1, *window, array.shape[-1]), np.float32)
        take, put = [], []
        for have, want in zip(array.shape[:-1], window, strict=True):
            size, start = min(have, want), max((have - want) // 2, 0)
            take.append(slice(start, start + size))
            put.append(slice((want - size) // 2, (want - size) // 2 + size))
        patch[0][tuple(put)] = array[tuple(take)]
        patch = patch.reshape(1, *self.study.target.patch, -1)  # a slice without the axis across it

        levels = jax.jit(jax.vmap(functools.partial(features, self._model), in_axes=(0, None)))
        found = levels(self._stacked(seeds, step), patch)
        return {name: np.asarray(found[name])[:, 0] for name in wanted}


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

        `Arm.predict` and `Arm.activations` take its `image`. The first call prepares the data where the workdir has
        no prepared store.

        Raises:
            UserError: If there is no such case or fold, or its data is no longer where it was.
        """
        known = [known for part in ("train", "val", "test") for known in self.cases(part, fold=fold)]
        if name not in known:
            raise UserError(f"no case {name!r}{nearest(name, known)} Cases: {', '.join(sorted(known))}")
        store = self.settings.runtime.store_dir or self.workdir / "stores"
        prepared = data.prepare_task(
            self.settings.target,
            ndim=self.settings.model.ndim,
            store_dir=paths.expand(store),
            known=self.record.stores["target"],
        )
        return data.load_case(data.fit_intensity(prepared, self.cases("train", fold=fold)), name)

    def references(self, *, fold: int | None = None) -> tuple[data.References, frozenset[str], dict[str, Any]]:
        """Returns what `study.score.folder.score_folder` needs to score label maps that were made elsewhere.

        Args:
            fold: The fold whose test cases are scored; None for those of all folds.

        Returns:
            The references of the target task, its test cases, and the study's scoring options.

        Raises:
            UserError: If there is no such fold.
        """
        splits = self.record.target.splits
        if fold is not None and not 0 <= fold < len(splits):
            raise UserError(f"no fold {fold}; the study has {len(splits)}, from 0")
        chosen = splits if fold is None else [splits[fold]]
        target, settings = self.settings.target, self.settings.evaluate
        labels, regions = () if target.regions else self.record.target.labels, target.regions
        axes, cache = len(target.window), paths.expand(self.settings.runtime.store_dir or self.workdir / "stores")
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
