"""One arm of a finished study: the parameters, predictions and activations of its networks."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Num

from jaxseg import checkpoint, data, inference
from jaxseg.analysis.activations import features
from jaxseg.data.volumes import headers
from jaxseg.models import layer_names, make_model
from jaxseg.settings import ArmSettings, StudySettings
from jaxseg.settings.kinds import nearest
from jaxseg.study import recorded_runs
from jaxseg.study.predict import Segmentation, classes_of, segment
from jaxseg.study.record import RecordedRun, RecordedTask
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
            probabilities: Return probabilities on the prepared grid instead, with a last axis of classes or, of a
                network of regions, of these.

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
