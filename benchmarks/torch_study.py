"""The PyTorch side of the benchmark of whole studies: the same networks, trained and tested one after another.

    python -m benchmarks.torch_study runs/benchmark/3d/peer

The folder holds work.json and cases.npz, which `launch.benchmark --study` writes: the prepared cases as arrays, the
networks in their order, and for each its training cases, steps, validations and test cases. Every network is trained by
`torch_loop.train`, without augmentation; windows go through it eight at a time, and DSC is taken with NumPy. Writes
result.json with the seconds of each stage, and the mean test DSC of every arm. It needs PyTorch and NumPy alone.
"""

from __future__ import annotations

import collections
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import torch_loop, torch_networks

Weights = dict[str, torch.Tensor]


class Peer:
    """The work of one folder."""

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        with self.timed("prepare"):
            self.work: dict[str, Any] = json.loads((folder / "work.json").read_text(encoding="utf-8"))
            with np.load(folder / "cases.npz") as arrays:
                self.arrays = dict(arrays)
        self.sources: dict[str, Weights] = {}
        self.dsc: dict[str, list[float]] = collections.defaultdict(list)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what is done meanwhile to the seconds of a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - began

    def do(self, job: dict[str, Any]) -> None:
        """Trains the networks of one job, and tests those of arms."""
        kind, validate_at = job["kind"], set(job["validate_at"])
        cases = {
            name: torch_loop.make_case(*self.arrays_of(job, name), job["patch"], job["classes"])
            for name in {name for run in job["runs"] for name in run["train"]}
        }
        for run in job["runs"]:
            began, apart = time.perf_counter(), self.seconds["validate"]

            def validated(step: int, network: torch.nn.Module) -> None:
                if step in validate_at:
                    with self.timed("validate"):
                        self.mean_dsc(network, job, "validation")

            network = torch_loop.train(
                [cases[name] for name in run["train"]],
                job | {"seed": run["seed"]},
                start=self.sources.get(run["source"]),
                after=validated,
            )
            self.seconds[kind] += time.perf_counter() - began - (self.seconds["validate"] - apart)
            self.sources[run["name"]] = network.state_dict() if kind == "pretrain" else {}
            if kind == "train":
                with self.timed("score"):
                    self.dsc[run["arm"]].append(self.mean_dsc(network, job, "test"))

    def arrays_of(self, job: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image and label map of a case."""
        return self.arrays[f"{job['task']}/{name}/image"], self.arrays[f"{job['task']}/{name}/label"]

    def mean_dsc(self, network: torch.nn.Module, job: dict[str, Any], part: str) -> float:
        """Mean DSC over the cases of a part, labels averaged in each."""
        patch, classes, batch = job["patch"], job["classes"], job["window_batch"]
        scores = []
        for name, starts in job[part].items():
            image, label = self.arrays_of(job, name)
            pad = torch_loop.padding(image.shape, patch)
            padded = torch.from_numpy(np.pad(image, pad))[None, None]
            found = torch_networks.segment(network, padded, starts, patch=patch, classes=classes, batch=batch)
            scores.append(dsc(found.numpy(), np.pad(label, pad), classes))
        return float(np.mean(scores))


def dsc(found: np.ndarray, label: np.ndarray, classes: int) -> float:
    """DSC, averaged over the labels that the reference holds."""
    scores = []
    for value in range(1, classes):
        a, b = found == value, label == value
        if b.any():
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def main() -> None:
    """Does all of it."""
    folder = Path(sys.argv[1])
    peer = Peer(folder)
    torch.set_num_threads(peer.work["threads"])
    for job in peer.work["jobs"]:
        peer.do(job)
    means = {arm: float(np.mean(scores)) for arm, scores in peer.dsc.items()}
    result = {"seconds": peer.seconds, "dsc": means, "version": torch.__version__}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
