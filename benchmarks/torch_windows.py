"""The PyTorch side of the prediction benchmark: a loop over windows, one seed, in a process of its own.

    python -m benchmarks.torch_windows '{"shapes": [[35, 50, 36]], "patch": [32, 32, 32], "overlap": 0.5, ...}'

Prints a line when ready, then segments all cases and prints the seconds for every line it reads.
`benchmarks.prediction` starts it.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import torch

from benchmarks import torch_networks
from jaxseg import inference


def main() -> None:
    """Segments random cases, some windows at a time, with mean probabilities where windows overlap."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    classes = settings["classes"]
    network = torch_networks.make_network("unet", ndim=3, channels=1, widths=settings["widths"], classes=classes).eval()
    patch = tuple(settings["patch"])
    rng = np.random.default_rng(0)
    images = [torch.tensor(rng.normal(size=(1, 1, *shape)), dtype=torch.float32) for shape in settings["shapes"]]

    def segment(image: torch.Tensor) -> torch.Tensor:
        # Images smaller than the window are padded to it, as jaxseg does.
        short = [max(side - extent, 0) for side, extent in zip(patch, image.shape[2:], strict=True)]
        image = torch.nn.functional.pad(image, [n for side in reversed(short) for n in (0, side)])
        starts = inference.window_starts(image.shape[2:], patch, settings["overlap"])
        return torch_networks.segment(network, image, starts, patch=patch, classes=classes, batch=settings["batch"])

    segment(images[0])
    print(json.dumps({"ready": True, "version": torch.__version__}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for image in images:
            segment(image)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
