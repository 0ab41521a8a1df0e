"""Small image sets on disk for tests."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np


def make_volume(seed=0, shape=(10, 9, 8), classes=3):
    """A noisy image whose label blocks are brighter."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in range(1, classes):
        corner = [int(rng.integers(0, max(1, n - 4))) for n in shape]
        label[tuple(slice(c, c + 4) for c in corner)] = value
    return (rng.standard_normal(shape) + label).astype(np.float32), label


def save(path: Path, array, affine=None, *, code=1, zooms=None):
    """Write a NIfTI file with both codes set, the affine given in mm, and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*(zooms or (1.0, 1.0, 1.0)), 1.0]) if affine is None else affine
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def write_set(folder: Path, volumes=None, *, labels=("a", "b"), listed=True, suffix=".nii.gz", affine=None, **more):
    """Write a Decathlon folder; `volumes` maps case names to (image, label)."""
    volumes = volumes or {f"case_{index}": make_volume(index) for index in range(4)}
    for name, (image, label) in volumes.items():
        save(folder / "imagesTr" / f"{name}{suffix}", image, affine)
        save(folder / "labelsTr" / f"{name}{suffix}", label, affine)
    description = {
        "name": folder.name,
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **{str(i): name for i, name in enumerate(labels, 1)}},
        **more,
    }
    if listed:
        description["training"] = [
            {"image": f"./imagesTr/{name}{suffix}", "label": f"./labelsTr/{name}{suffix}"} for name in volumes
        ]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
