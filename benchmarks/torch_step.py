"""The PyTorch side of the benchmark: the same network, loss and optimizer, one seed, in a process of its own.

    python -m benchmarks.torch_step '{"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 32, ...}'

Prints one line of JSON when ready; then takes one training step and prints its seconds for every line it reads.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.torch_networks import make_network


def dice_ce(logits: torch.Tensor, label: torch.Tensor, smooth: float = 1e-5) -> torch.Tensor:
    """Soft Dice over foreground labels plus cross-entropy, as `jaxseg.losses.make_loss`."""
    axes = tuple(range(2, logits.ndim))
    probabilities = functional.softmax(logits.float(), 1)
    target = functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    overlap, sizes = (probabilities * target).sum(axes), probabilities.sum(axes) + target.sum(axes)
    dice = 1 - (2 * overlap + smooth) / (sizes + smooth)
    return dice[:, 1:].mean() + functional.cross_entropy(logits.float(), label)


def make_step(settings: dict[str, Any]) -> Any:
    """A function that takes one training step; on a GPU it may return before that is done."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    ndim, patch, batch = settings["ndim"], settings["patch"], settings["batch"]
    classes = settings["classes"]
    model = make_network(settings["network"], ndim=ndim, channels=1, widths=settings["widths"], classes=classes)
    model = model.to(device)
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = settings["precision"] != "float32"
    if settings["frozen"]:
        model.encoder.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=device == "cuda")
    layout: Any = {}
    if settings["channels_last"]:
        layout = {"memory_format": torch.channels_last_3d if ndim == 3 else torch.channels_last}
        model = model.to(**layout)
    network: Any = torch.compile(model) if settings["compiled"] else model
    rng = np.random.default_rng(0)
    spatial = (patch,) * ndim
    images = torch.tensor(rng.normal(size=(4, batch, 1, *spatial)), dtype=torch.float32).to(device)
    labels = torch.tensor(rng.integers(0, settings["classes"], size=(4, batch, *spatial))).to(device)
    half = settings["precision"] == "bfloat16"

    def step(i: int) -> None:
        image, label = images[i % 4].to(**layout) if layout else images[i % 4], labels[i % 4]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            logits = network(image)
        dice_ce(logits, label).backward()
        optimizer.step()

    return step


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Warm up, then one step for every line read."""
    settings = json.loads(sys.argv[1])
    start = time.perf_counter()
    step = make_step(settings)
    step(0)
    wait()
    first = time.perf_counter() - start
    for i in range(3):
        step(i)
    wait()
    print(json.dumps({"ready": True, "compile_seconds": first, "version": torch.__version__}), flush=True)
    for i, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        for j in range(settings["steps"]):
            step(i + j)
        wait()
        seconds = (time.perf_counter() - start) / settings["steps"]
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        peak = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
