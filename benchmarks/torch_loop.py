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
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from benchmarks.torch_networks import make_network

Case = tuple[np.ndarray, np.ndarray]


def read(path: Path, patch: list[int]) -> np.ndarray:
    """The voxels of a file on its own grid; images are stored as volumes of one slice."""
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


def read_training_case(folder: Path, name: str, patch: list[int]) -> Case:
    """Image and label map, at least as large as a patch."""
    image = normalised(read(folder / "imagesTr" / f"{name}.nii.gz", patch))
    label = read(folder / "labelsTr" / f"{name}.nii.gz", patch).astype(np.int64)
    pad = padding(image.shape, patch)
    return np.pad(image, pad), np.pad(label, pad)


def draw(cases: list[Case], settings: dict[str, Any], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: patches anywhere in a case, half of them about a voxel of a label."""
    images, labels = [], []
    for _ in range(settings["batch"]):
        image, label = cases[rng.integers(len(cases))]
        patch = settings["patch"]
        start = [int(rng.integers(extent - side + 1)) for extent, side in zip(image.shape, patch, strict=True)]
        present = [value for value in range(1, settings["classes"]) if (label == value).any()]
        if present and rng.random() < 0.5:
            voxels = np.argwhere(label == rng.choice(present))
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


def train(cases: list[Case], settings: dict[str, Any]) -> torch.nn.Module:
    """The network after all steps."""
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    ndim, widths = len(settings["patch"]), settings["widths"]
    network = make_network("unet", ndim=ndim, channels=1, widths=widths, classes=settings["classes"])
    optimizer = torch.optim.Adam(network.parameters(), lr=settings["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
    for _ in range(settings["steps"]):
        image, label = draw(cases, settings, rng)
        optimizer.zero_grad()
        dice_ce(network(image), label).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def segment(network: torch.nn.Module, image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Label map of a case: the mean of windows that share half."""
    patch = settings["patch"]
    pad = padding(image.shape, patch)
    padded = torch.from_numpy(np.pad(image, pad))
    total = torch.zeros(settings["classes"], *padded.shape)
    corners = []
    for extent, side in zip(padded.shape, patch, strict=True):
        corners.append(sorted({*range(0, extent - side, side // 2), extent - side}))
    for start in itertools.product(*corners):
        box = tuple(slice(a, a + side) for a, side in zip(start, patch, strict=True))
        total[(slice(None), *box)] += torch.softmax(network(padded[box][None, None]), 1)[0]
    inside = tuple(slice(before, before + extent) for (before, _), extent in zip(pad, image.shape, strict=True))
    return total.argmax(0).numpy().astype(np.uint8)[inside]


def main() -> None:
    """Trains, and writes the label maps of the test cases to `output`, an npz file."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    folder = Path(settings["data"])
    patch = settings["patch"]
    cases = [read_training_case(folder, name, patch) for name in settings["train"]]
    begun = time.perf_counter()
    network = train(cases, settings)
    seconds = time.perf_counter() - begun
    images = {name: normalised(read(folder / "imagesTr" / f"{name}.nii.gz", patch)) for name in settings["test"]}
    maps = {name: segment(network, image, settings) for name, image in images.items()}
    np.savez_compressed(settings["output"], **maps)
    print(json.dumps({"seconds_per_step": seconds / settings["steps"], "version": torch.__version__}))


if __name__ == "__main__":
    main()
