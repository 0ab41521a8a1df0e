"""The PyTorch side of the accuracy benchmark: a plain loop that trains one seed and segments the test cases.

    python -m benchmarks.torch_loop '{"data": "PATH", "train": ["case_1", ...], "test": [...], "patch": [32, 32], ...}'

What many would write first: intensities between the 0.5th and the 99.5th percentile of a case at 0 to 1, random
patches of which half hold foreground, no augmentation, a U-Net with PyTorch's own initialisation, soft Dice and
cross-entropy, Adam with a cosine, windows that share half and their mean. `benchmarks.accuracy` starts it. It needs
PyTorch, NumPy and nibabel and nothing of jaxseg, so that it can run in an environment of its own.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import torch_networks


class Case(NamedTuple):
    """A training case, at least as large as a patch."""

    image: np.ndarray
    label: np.ndarray
    places: dict[int, np.ndarray]
    """Positions of the voxels of each label that the case holds."""


def make_case(image: np.ndarray, label: np.ndarray, patch: list[int], classes: int) -> Case:
    """Pads a case to the size of a patch, and finds its labels."""
    pad = padding(image.shape, patch)
    image, label = np.pad(image, pad), np.pad(label, pad)
    places = {value: np.argwhere(label == value) for value in range(1, classes)}
    return Case(image, label, {value: found for value, found in places.items() if len(found)})


def read(path: Path, patch: list[int]) -> np.ndarray:
    """The voxels of a file on its own grid; images are stored as volumes of one slice."""
    import nibabel  # which `torch_study`, whose cases are arrays, does without

    image: Any = nibabel.load(path)
    voxels = np.asanyarray(image.dataobj)
    return voxels[..., 0] if len(patch) == 2 else voxels


def normalised(image: np.ndarray) -> np.ndarray:
    """Intensities with the 0.5th and 99.5th percentile at 0 and 1, clipped to them."""
    low, high = np.percentile(image.astype(np.float64), (0.5, 99.5))
    return ((np.clip(image, low, high) - low) / (high - low if high > low else 1.0)).astype(np.float32)


def padding(shape: tuple[int, ...], patch: list[int]) -> list[tuple[int, int]]:
    """What a case lacks of a patch, before and after it along every axis."""
    short = [max(side - extent, 0) for side, extent in zip(patch, shape, strict=True)]
    return [(missing // 2, missing - missing // 2) for missing in short]


def read_training_case(folder: Path, name: str, patch: list[int], classes: int) -> Case:
    """A case of a folder in Medical Segmentation Decathlon layout."""
    image = normalised(read(folder / "imagesTr" / f"{name}.nii.gz", patch))
    return make_case(image, read(folder / "labelsTr" / f"{name}.nii.gz", patch).astype(np.int64), patch, classes)


def draw(cases: list[Case], settings: dict[str, Any], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: patches anywhere in a case, half of them about a voxel of a label."""
    images, labels = [], []
    for _ in range(settings["batch"]):
        image, label, places = cases[rng.integers(len(cases))]
        patch = settings["patch"]
        start = [int(rng.integers(extent - side + 1)) for extent, side in zip(image.shape, patch, strict=True)]
        if places and rng.random() < 0.5:
            voxels = places[rng.choice([*places])]
            middle = voxels[rng.integers(len(voxels))] - np.array(patch) // 2
            start = np.clip(middle, 0, np.array(image.shape) - patch).tolist()
        box = tuple(slice(a, a + side) for a, side in zip(start, patch, strict=True))
        images.append(image[box])
        labels.append(label[box])
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(labels))


def dice_ce(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Soft Dice of the foreground labels, over the batch's patches one by one, plus cross-entropy."""
    target = torch.moveaxis(torch.nn.functional.one_hot(label, logits.shape[1]), -1, 1).float()
    p = torch.softmax(logits, 1)
    axes = tuple(range(2, logits.ndim))
    dice = (2 * (p * target).sum(axes) + 1e-5) / (p.sum(axes) + target.sum(axes) + 1e-5)
    return 1 - dice[:, 1:].mean() + torch.nn.functional.cross_entropy(logits, label)


def train(
    cases: list[Case],
    settings: dict[str, Any],
    *,
    start: dict[str, torch.Tensor] | None = None,
    after: Callable[[int, torch.nn.Module], None] = lambda step, network: None,
) -> torch.nn.Module:
    """Trains one network.

    Args:
        cases: The training cases.
        settings: Those of the network and of its training.
        start: Weights to begin with, those of another shape left out; none are PyTorch's own initialisation.
        after: Called after every step with the number of steps done.

    Returns:
        The network after all steps.
    """
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    ndim, widths, classes = len(settings["patch"]), settings["widths"], settings["classes"]
    network = torch_networks.make_network("unet", ndim=ndim, channels=1, widths=widths, classes=classes)
    if start is not None:
        fresh = network.state_dict()
        network.load_state_dict(
            fresh | {name: found for name, found in start.items() if found.shape == fresh[name].shape}
        )
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    for step in range(settings["steps"]):
        image, label = draw(cases, settings, rng)
        optimizer.zero_grad()
        dice_ce(network(image), label).backward()
        optimizer.step()
        schedule.step()
        after(step + 1, network)
    return network.eval()


def segment(network: torch.nn.Module, image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Label map of a case: the mean of windows that share half."""
    patch = settings["patch"]
    pad = padding(image.shape, patch)
    padded = torch.from_numpy(np.pad(image, pad))[None, None]
    corners = []
    for extent, side in zip(padded.shape[2:], patch, strict=True):
        corners.append(sorted({*range(0, extent - side, side // 2), extent - side}))
    starts = [*itertools.product(*corners)]
    found = torch_networks.segment(network, padded, starts, patch=patch, classes=settings["classes"])
    inside = tuple(slice(before, before + extent) for (before, _), extent in zip(pad, image.shape, strict=True))
    return found.numpy()[inside]


def main() -> None:
    """Trains, and writes the label maps of the test cases to `output`, an npz file."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["data"])
    patch = settings["patch"]
    cases = [read_training_case(folder, name, patch, settings["classes"]) for name in settings["train"]]
    begun = time.perf_counter()
    network = train(cases, settings)
    seconds = time.perf_counter() - begun
    images = {name: normalised(read(folder / "imagesTr" / f"{name}.nii.gz", patch)) for name in settings["test"]}
    maps: dict[str, Any] = {name: segment(network, image, settings) for name, image in images.items()}
    np.savez_compressed(settings["output"], **maps)
    print(json.dumps({"seconds_per_step": seconds / settings["steps"], "version": torch.__version__}))


if __name__ == "__main__":
    main()
