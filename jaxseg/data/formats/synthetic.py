"""Synthetic tasks with labels: textured shapes whose similarity to another task can be set by a number.

    synthetic:FAMILY[?key=value&...]

A case has a textured background with one shape per label (at places around the task's anatomy), unlabelled look-alikes,
a smooth intensity drift and noise. A label differs from its surroundings in mean intensity and in the grain of its
texture, so that neither a threshold nor position alone solves a task.

| family | shapes |
| --- | --- |
| `blobs` | ellipsoids |
| `boxes` | rounded boxes |
| `tubes` | bent tubes |
| `shells` | nested shells: every label lies inside the one before |

| key | default | meaning |
| --- | --- | --- |
| `n` | 24 | cases; case i is the same whatever n is |
| `shape` | 24x24x24 | voxels; two numbers make 2-D images |
| `labels` | 2 | number of labels, 1 to 8 |
| `channels` | 1 | image channels, each with its own contrast of every label |
| `seed` | 0 | which task of the family; tasks of one family share everything at relatedness 1 |
| `relatedness` | 1 | 1: anatomy, contrast and texture are the family's; 0: drawn from `seed`; between: a blend |
| `contrast` | 1 | scales the mean differences between labels and background |
| `noise` | 0.3 | standard deviation of white noise; a label's mean differs by about 1 |
| `size` | 1 | scales the shapes |
| `distractors` | 1 | unlabelled shapes with a label's intensity and the background's texture |
| `jitter` | 0.08 | deviation of a shape's place from case to case, as a share of the image |
| `spacing` | 1 an axis | voxel size in mm, such as 1x1x3; shapes are drawn in voxels |
| `per_group` | 1 | successive cases of one group; they share anatomy and differ in noise and small movements |

A source and a target: `synthetic:blobs?seed=1&relatedness=0.7` and `synthetic:blobs`. For a source that has little in
common with the target, `synthetic:tubes?seed=1&relatedness=0`. Everything is a function of the string: the same
string gives the same voxels on every machine up to the rounding of NumPy and SciPy.
"""

from __future__ import annotations

import dataclasses
import difflib
import urllib.parse
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Num

from jaxseg import streams
from jaxseg.types import UserError

FAMILIES = ("blobs", "boxes", "tubes", "shells")


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
    """A parsed `synthetic:` string."""

    family: str
    n: int = 24
    shape: tuple[int, ...] = (24, 24, 24)
    labels: int = 2
    channels: int = 1
    seed: int = 0
    relatedness: float = 1.0
    contrast: float = 1.0
    noise: float = 0.3
    size: float = 1.0
    distractors: int = 1
    jitter: float = 0.08
    spacing: tuple[float, ...] = ()
    per_group: int = 1

    @property
    def identity(self) -> str:
        """Return everything that a case depends on, apart from its number."""
        return repr(dataclasses.replace(self, n=0))

    def case_name(self, index: int) -> str:
        """Return the name of a case."""
        return f"{self.family}_{index:04d}"

    def group_name(self, index: int) -> str:
        """Return the group of a case; tasks that differ in any way share no group."""
        return f"{self.family}-{streams.hash_name(self.identity):08x}-{index // self.per_group:04d}"


def parse(text: str) -> SyntheticTask:
    """Parse what follows `synthetic:`.

    >>> parse("blobs?n=8&shape=16x16").shape
    (16, 16)

    Raises:
        UserError: A family or key is unknown, or a value is out of range.
    """
    family, _, query = text.partition("?")
    where = f"data 'synthetic:{text}'"
    if family not in FAMILIES:
        raise UserError(f"{where}: no synthetic family {family!r}; there are {', '.join(FAMILIES)}.")
    fields = {field.name: field for field in dataclasses.fields(SyntheticTask) if field.name != "family"}
    values: dict[str, Any] = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown key {key!r}; allowed are {', '.join(fields)}.{hint}")
        values[key] = _value(key, value, fields[key].default, where)
    task = SyntheticTask(family, **values)
    if not task.spacing:
        task = dataclasses.replace(task, spacing=(1.0,) * len(task.shape))
    _check(task, where)
    return task


def _value(key: str, text: str, default: Any, where: str) -> Any:
    try:
        if isinstance(default, tuple):
            kind = int if key == "shape" else float
            return tuple(kind(part) for part in text.split("x"))
        return type(default)(text)
    except ValueError:
        form = {"shape": "24x24x24", "spacing": "1x1x3"}.get(key, f"a number such as {default}")
        raise UserError(f"{where}: {key} is {text!r}; {form} is the form expected.") from None


def _check(task: SyntheticTask, where: str) -> None:
    limits = {
        "n": (1, 100_000), "labels": (1, 8), "channels": (1, 16), "relatedness": (0, 1), "contrast": (0, 100),
        "noise": (0, 100), "size": (0.2, 2), "distractors": (0, 16), "jitter": (0, 0.5), "per_group": (1, 100_000),
    }  # fmt: skip
    for key, (low, high) in limits.items():
        if not low <= getattr(task, key) <= high:
            raise UserError(f"{where}: {key} is {getattr(task, key)}; it must lie between {low} and {high}.")
    if len(task.shape) not in (2, 3) or min(task.shape) < 8:
        raise UserError(f"{where}: shape is {task.shape}; two or three numbers of at least 8 are needed.")
    if len(task.spacing) != len(task.shape) or min(task.spacing) <= 0:
        raise UserError(f"{where}: spacing is {task.spacing}; one positive number for each axis of shape is needed.")
    if task.seed < 0:
        raise UserError(f"{where}: seed is {task.seed}; it must not be negative.")


# ------------------------------------------------------------------------------------------------------- parameters


@dataclasses.dataclass(frozen=True)
class _Anatomy:
    """What the cases of a task have in common; arrays have one row a label, the background's first where it has one."""

    place: Float[np.ndarray, "labels 3"]
    radius: Float[np.ndarray, " labels"]
    stretch: Float[np.ndarray, "labels 3"]
    power: float
    mean: Float[np.ndarray, "classes channels"]
    grain: Float[np.ndarray, " classes"]
    amplitude: Float[np.ndarray, " classes"]


def _draw_anatomy(rng: np.random.Generator, task: SyntheticTask) -> _Anatomy:
    count = task.labels
    angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count
    distance = 0.0 if count == 1 else 0.22
    place = 0.5 + distance * np.stack([np.cos(angle), np.sin(angle), np.sin(2 * angle)], axis=1)
    place += rng.uniform(-0.05, 0.05, place.shape)
    radius = rng.uniform(0.17, 0.22, count) / (1 if count <= 3 else (count / 3) ** 0.5)
    stretch = np.exp(rng.uniform(-0.2, 0.2, (count, 3)))
    if task.family == "tubes":
        stretch *= np.array([0.55, 0.55, 1.9])
        radius *= 1.1
    if task.family == "shells":
        place[:] = place.mean(axis=0)
        stretch[:] = stretch[0]
        radius = 0.36 * (1 - np.arange(count) / (count + 1))
    sign = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)[:, None] * rng.choice([-1.0, 1.0], (1, task.channels))
    mean = np.concatenate([np.zeros((1, task.channels)), sign * rng.uniform(0.8, 1.4, (count, task.channels))])
    grain = np.exp(rng.uniform(np.log(0.5), np.log(2.5), count + 1))
    return _Anatomy(
        place=place,
        radius=radius,
        stretch=stretch,
        power={"boxes": 6.0}.get(task.family, 2.0),
        mean=mean,
        grain=grain,
        amplitude=rng.uniform(0.3, 0.7, count + 1),
    )


def _anatomy(task: SyntheticTask) -> _Anatomy:
    """The family's anatomy blended with one drawn from the task's seed."""
    family = _draw_anatomy(streams.host_rng(task.family, 0), task)
    own = _draw_anatomy(streams.host_rng(task.family, 1, task.seed), task)
    share = task.relatedness

    def blend(name: str) -> Any:
        return share * getattr(family, name) + (1 - share) * getattr(own, name)

    return _Anatomy(**{field.name: blend(field.name) for field in dataclasses.fields(_Anatomy)})


# ------------------------------------------------------------------------------------------------------------- cases


def make_case(
    task: SyntheticTask, index: int
) -> tuple[Float[np.ndarray, "*spatial channels"], Num[np.ndarray, " *spatial"]]:
    """Return image (float32, arbitrary units) and label map (int32, 0 .. labels) of one case."""
    anatomy = _anatomy(task)
    shared = streams.host_rng(task.identity, 0, index // task.per_group)
    own = streams.host_rng(task.identity, 1, index)
    jitter = task.jitter * shared.standard_normal((task.labels, 3))
    if task.per_group > 1:
        jitter += 0.1 * task.jitter * own.standard_normal(jitter.shape)
    if task.family == "shells":
        jitter[:] = jitter[0]
    place = np.clip(anatomy.place + jitter, 0.15, 0.85)
    turn = [_rotation(shared, 0.4, len(task.shape)) for _ in range(task.labels)]
    growth = np.exp(0.12 * shared.standard_normal(task.labels))
    if task.family == "shells":
        turn, growth = [turn[0]] * task.labels, np.full(task.labels, growth[0])

    label = np.zeros(task.shape, dtype=np.int32)
    wobble = 0.15 * _field(shared, task.shape, min(task.shape) / 8)
    for row in range(task.labels):
        inside = _shape(task, anatomy, row, place[row], turn[row], growth[row], wobble)
        label[inside if task.family == "shells" else inside & (label == 0)] = row + 1

    looks = label.copy()
    for _ in range(task.distractors):
        row = int(own.integers(task.labels))
        centre = own.uniform(0.15, 0.85, 3)
        inside = _shape(task, anatomy, row, centre, _rotation(own, 3.0, len(task.shape)), 0.6, wobble)
        looks[inside & (label == 0)] = -(row + 1)
    return _appearance(task, anatomy, label, looks, own), label


def _appearance(
    task: SyntheticTask, anatomy: _Anatomy, label: np.ndarray, looks: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "*spatial channels"]:
    image = np.empty((*task.shape, task.channels), dtype=np.float32)
    scales = [anatomy.grain[value] for value in range(task.labels + 1)]
    for channel in range(task.channels):
        texture = np.zeros(task.shape)
        for value, scale in enumerate(scales):
            region = label == value
            texture[region] = (anatomy.amplitude[value] * _field(rng, task.shape, scale))[region]
        mean = task.contrast * anatomy.mean[np.abs(looks), channel]
        drift = 0.2 * _field(rng, task.shape, min(task.shape) / 4)
        gain = float(np.exp(0.1 * rng.standard_normal()))
        noise = task.noise * rng.standard_normal(task.shape)
        # A scanner blurs the edges of real organs, so the noise is added after the blur.
        image[..., channel] = gain * (scipy.ndimage.gaussian_filter(mean, 0.5) + texture + drift) + noise
    return image


def _field(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Float[np.ndarray, " *spatial"]:
    """A Gaussian random field of unit variance that varies over `scale` voxels."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), scale, mode="wrap")
    return (field - field.mean()) / field.std()


def _rotation(rng: np.random.Generator, most: float, ndim: int) -> Float[np.ndarray, "3 3"]:
    """A rotation by at most about `most` radians an axis; about the third axis alone in 2-D."""
    out = np.eye(3)
    for first, second in [(0, 1)] if ndim == 2 else [(0, 1), (0, 2), (1, 2)]:
        angle = rng.uniform(-most, most)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        out = out @ turn
    return out


def _shape(
    task: SyntheticTask,
    anatomy: _Anatomy,
    row: int,
    centre: np.ndarray,
    rotation: np.ndarray,
    growth: float,
    wobble: np.ndarray,
) -> np.ndarray:
    """Voxels inside a superellipsoid, sum |u_i|^p < 1 in its own axes, with an uneven surface."""
    ndim = len(task.shape)
    axes = [(np.arange(n) + 0.5) / n for n in task.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - centre[:ndim]
    local = points @ rotation[:ndim, :ndim]
    stretch = anatomy.stretch[row]
    if ndim == 2 and task.family == "tubes":
        stretch = stretch[[0, 2]]  # the long axis of a tube is the third
    radii = task.size * growth * anatomy.radius[row] * stretch[:ndim]
    unit = local / radii
    if task.family == "tubes":
        unit[..., 0] += 0.5 * (unit[..., ndim - 1] ** 2 - 0.5)
    return (np.abs(unit) ** anatomy.power).sum(axis=-1) ** (1 / anatomy.power) + wobble < 1
