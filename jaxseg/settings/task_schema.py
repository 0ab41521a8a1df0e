"""Settings of a task and of its augmentation, declared once as in `jaxseg.settings.schema`."""

import dataclasses
from typing import Annotated, Literal

from jaxseg.settings.kinds import (
    Allowed,
    Amount,
    ExternalSets,
    Limits,
    Number,
    Probability,
    Regions,
    Share,
    Sizes,
    Spacing,
)

Unit = Literal["mm", "voxel"]
Normalization = Literal["zscore", "zscore_nonzero", "percentile", "none", "dataset", "auto"]

SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Canonical axes (right, anterior, superior) that slices lie across."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Augmentation of patches inside the compiled step; a probability of 0 switches one off."""

    flip: tuple[int, ...] = ()
    """Axes that may be flipped, each with probability 1/2."""
    rotate90: tuple[int, ...] = ()
    """Axes among which patches are turned by right angles; they need equal patch sizes."""
    affine: Probability = 0.0
    """Probability of a small rotation and scaling per patch."""
    rotation_deg: Annotated[float, Allowed("degrees from 0 to 180", lambda angle: 0 <= angle <= 180)] = 15.0
    """Largest rotation of `affine`."""
    scale: Amount = 0.15
    """Largest relative scaling of `affine`."""
    contrast: Probability = 0.0
    """Probability of a random contrast per patch."""
    blur: Probability = 0.0
    """Probability of a Gaussian blur per patch."""
    low_resolution: Probability = 0.0
    """Probability of a loss of resolution per patch."""
    gamma: Probability = 0.0
    """Probability of a random gamma per patch."""
    brightness: Probability = 0.0
    """Probability of a random shift and scale of intensities per patch."""
    noise: Probability = 0.0
    """Probability of added Gaussian noise per patch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """A task: where its cases come from and how they become training data."""

    data: Annotated[str, Allowed("a folder, or synthetic:NAME", bool)] = "synthetic:blobs"
    """A folder in Medical Segmentation Decathlon or nnU-Net layout, or synthetic:NAME[?n=..&shape=..]; of a source also
    `target`, the cases of the target that its runs do not see, and A+B, several of these pooled."""
    labels: tuple[str, ...] = ()
    """Names of the labels to segment, in this order; () takes all of dataset.json."""
    regions: Regions = ()
    """Overlapping regions, segmented in place of labels: 'whole=edema+core, core=core'; each writes its first label."""
    spacing_mm: Spacing = "native"
    """Voxel size of training: native, median, or a number per axis such as '1.0, 1.0, 3.0' (0 keeps it as it is)."""
    as_slices: str = ""
    """A 2-D network segments volumes slice by slice: axial, coronal or sagittal; empty where images are 2-D."""
    unit: Unit = "mm"
    """Unit of every distance; voxel where the true spacing is unknown."""
    train_cases: Sizes = (0,)
    """Training set sizes, each a variant of every arm; 0 takes all training cases."""
    val_cases: Number = 8
    """Cases for learning curves, taken from the training side of each fold."""
    test_cases: Annotated[int, Allowed("a number from 1, or 0 for a share of the cases", lambda n: n >= 0)] = 0
    """Cases held out in each fold; 0 holds out a share of 1 / folds (a fifth where folds is 1)."""
    folds: Number = 1
    """1 makes a single split; with k folds every case is tested once."""
    patch: tuple[int, ...] = (32, 32, 32)
    """Voxels of a patch per axis."""
    clip: Limits = ()
    """Intensities are first cut to this range, such as a CT window '(-160.0, 240.0)'; () cuts none."""
    noise: Amount = 0.0
    """Gaussian noise added to every image, in its own standard deviations: a task made harder on purpose."""
    normalization: Normalization = "zscore"
    """Intensities per case; dataset takes statistics of the training cases, auto decides by modality."""
    test_data: ExternalSets = ("imagesTs",)
    """External test sets, each a folder or NAME=FOLDER; imagesTs stands for the target's own imagesTs/ and labelsTs/,
    where it has them, and () takes none. Sets may be added to a study that is trained."""
    bad_cases: Literal["error", "skip"] = "error"
    """A case that cannot be used stops the study, or is left out and reported."""
    shuffle_labels: bool = False
    """A source trains on other cases' label maps: a control in which nothing fits together."""
    foreground: Share = 0.5
    """Share of patches that contain a voxel of a label drawn uniformly."""
    augment: AugmentSettings = AugmentSettings()

    @property
    def labelled(self) -> bool:
        """Whether label maps are read; see `ImageTask`."""
        return True

    @property
    def slice_axis(self) -> int | None:
        """The canonical axis across which volumes are cut into slices; None where they are not."""
        return SLICE_AXES.get(self.as_slices)

    @property
    def window(self) -> tuple[int, ...]:
        """The patch along the axes of a case: one voxel thick across slices."""
        axis = self.slice_axis
        return self.patch if axis is None else (*self.patch[:axis], 1, *self.patch[axis:])

    def window_axes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a patch as those of a case."""
        return tuple(axis if self.slice_axis is None or axis < self.slice_axis else axis + 1 for axis in axes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTask(TaskSettings):
    """A task of which the images alone are used, because its networks learn without labels.

    It is never equal to a `TaskSettings` with the same fields: cases are listed, prepared and split apart from those of
    the labelled task, so that neither a missing nor a present label map can play a part.
    """

    @property
    def labelled(self) -> bool:
        """Whether label maps are read; see `ImageTask`."""
        return False


def images_alone(task: TaskSettings) -> ImageTask:
    """Returns a task as networks see it that learn without labels: no label is named, sought or drawn from."""
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return ImageTask(**values | {"labels": (), "regions": (), "foreground": 0.0, "shuffle_labels": False})
