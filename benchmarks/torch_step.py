"""The PyTorch side of the benchmark: the same network, loss and optimizer, in a process of its own.

    python -m benchmarks.torch_step '{"network": "unet", "ndim": 3, "widths": [16, 32, 64], "patch": 32, ...}'

Prints one line of JSON when ready; then, for every line it reads, takes `steps` training steps and prints the seconds
of one step of one seed. There is one seed but in the stacked modes.
"""

from __future__ import annotations

import copy
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_networks import make_network
from jaxseg.exports import torch_network

Network = Callable[[torch.Tensor], torch.Tensor]


def dice_ce(logits: torch.Tensor, label: torch.Tensor, smooth: float = 1e-5) -> torch.Tensor:
    """Soft Dice over foreground labels plus cross-entropy, as `jaxseg.losses.make_loss`."""
    axes = tuple(range(2, logits.ndim))
    probabilities = functional.softmax(logits.float(), 1)
    target = functional.one_hot(label, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    overlap, sizes = (probabilities * target).sum(axes), probabilities.sum(axes) + target.sum(axes)
    dice = 1 - (2 * overlap + smooth) / (sizes + smooth)
    return dice[:, 1:].mean() + functional.cross_entropy(logits.float(), label)


def make_step(settings: dict[str, Any]) -> Any:
    """A function that takes one training step of all seeds; on a GPU it may return before that is done.

    `strategy` says how: `eager`, operation by operation; `compiled`, network and loss; `graphs`, the same replayed as a
    CUDA graph; `stacked` and `stacked_compiled`, the networks of several seeds as one, with stacked weights.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    batch, spatial = settings["batch"], (settings["patch"],) * settings["ndim"]
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = settings["precision"] != "float32"
    layout = {}
    if settings["channels_last"]:
        layout = {"memory_format": torch.channels_last_3d if settings["ndim"] == 3 else torch.channels_last}
    mode, half = settings["strategy"], settings["precision"] == "bfloat16"
    seeds = settings["seeds"] if mode.startswith("stacked") else 1
    networks = [make_model(settings).to(device).to(**layout) for _ in range(seeds)]
    network, params = stacked(networks) if mode.startswith("stacked") else alone(networks[0])
    optimizer = torch.optim.Adam(params, lr=1e-3, fused=device == "cuda")

    def loss_of(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
            logits = network(image)
        # The mean over all seeds' images, times their number: the sum of the seeds' own losses.
        return seeds * dice_ce(logits.flatten(0, -2 - len(spatial)), label.flatten(0, -1 - len(spatial)))

    if mode.endswith("compiled"):
        loss_of = torch.compile(loss_of)
    elif mode == "graphs":
        loss_of = torch.compile(loss_of, mode="reduce-overhead")
    lead = (seeds, batch) if mode.startswith("stacked") else (batch,)
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.normal(size=(4, *lead, 1, *spatial)), dtype=torch.float32).to(device)
    labels = torch.tensor(rng.integers(0, settings["classes"], size=(4, *lead, *spatial))).to(device)
    inputs = [image.to(**layout) if layout and seeds == 1 else image for image in images]

    def step(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(inputs[i % 4], labels[i % 4]).backward()
        optimizer.step()

    return step


def make_model(settings: dict[str, Any]) -> nn.Module:
    """The workload's network, its encoder without gradients where that is frozen."""
    widths, classes = settings["widths"], settings["classes"]
    model = make_network(settings["network"], ndim=settings["ndim"], channels=1, widths=widths, classes=classes)
    if settings["frozen"]:
        model.encoder.requires_grad_(False)
    return model


def alone(model: nn.Module) -> tuple[Network, list[torch.Tensor]]:
    """One network, and what of it is trained."""
    return model, [p for p in model.parameters() if p.requires_grad]


def stacked(models: list[nn.Module]) -> tuple[Network, list[torch.Tensor]]:
    """Networks of several seeds as one of images `[seeds, batch, ...]`, and their weights, stacked."""
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def one(params: Any, buffers: Any, image: torch.Tensor) -> torch.Tensor:
        # PyTorch maps no nearest-exact upsampling over stacked weights; plain nearest is the same by whole factors.
        with mock.patch.object(torch_network, "upsample", nearest):
            return torch.func.functional_call(base, (params, buffers), (image,))

    mapped = torch.func.vmap(one, randomness="different")
    return lambda image: mapped(params, buffers, image), [p for p in params.values() if p.requires_grad]


def nearest(low: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Nearest neighbours on a grid that is finer by whole factors."""
    size = [n * factor for n, factor in zip(low.shape[2:], factors, strict=True)]
    return functional.interpolate(low, size=size, mode="nearest")


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
        seconds = (time.perf_counter() - start) / settings["steps"] / settings["seeds"]
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        peak = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
