"""PyTorch's side of the benchmark: networks whose weights are stacked have the gradients of each alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.optional import optional_module

optional_module("torch")

COMPARE = """
import sys
import torch
from benchmarks import torch_step

name, ndim = sys.argv[1], int(sys.argv[2])
workload = {"network": name, "ndim": ndim, "widths": [4, 8], "classes": 3, "frozen": False}
torch.manual_seed(0)
networks = [torch_step.make_model(workload) for _ in range(2)]
images = torch.randn(2, 2, 1, *(8,) * ndim)
labels = torch.randint(0, 3, (2, 2, *(8,) * ndim))
alone = []
for network, image, label in zip(networks, images, labels, strict=True):
    torch_step.dice_ce(network(image), label).backward()
    alone.append([p.grad for p in network.parameters()])
stacked, params = torch_step.stacked(networks)
(2 * torch_step.dice_ce(stacked(images).flatten(0, 1), labels.flatten(0, 1))).backward()
for p, *own in zip(params, *alone, strict=True):
    torch.testing.assert_close(p.grad, torch.stack(own), rtol=1e-4, atol=1e-6)
print("compared", len(params))
"""


@pytest.mark.parametrize(("name", "ndim"), [("unet", 2), ("unet", 3), ("vnet", 3)])
def test_stacked_networks_have_the_gradients_of_each_alone(name: str, ndim: int) -> None:
    command = [sys.executable, "-c", COMPARE, name, str(ndim)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 10
