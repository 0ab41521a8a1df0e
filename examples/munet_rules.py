"""Rules for the auxiliary network of MU-Net (brain masks in T2-weighted MR of mice; Hierakonpolis/MU-Net, MIT licence).

    python -m launch.import_weights --input=bestbyloss.tar --rules=examples/munet_rules.py --output=DIR

Each of its levels has three convolutions, the third with one tap, and a leaky ReLU and a batch norm in front of each.
The four levels of the encoder compute here what they compute there. What follows does not: the input of the bottleneck
passes a leaky ReLU, and features are upsampled to the nearest voxel where MU-Net puts them back to the places of their
maxima. Images had a mean of 0 and were divided by the square root of their standard deviation; of the normalisations
here `zscore` is the nearest, and it is not recorded as theirs.
"""

import numpy as np

from jaxseg.imports import naming
from jaxseg.imports.kinds import Imported

WIDTHS = (4, 8, 16, 32)
MODEL = {
    "name": "unet",
    "ndim": 3,
    "widths": (*WIDTHS, WIDTHS[-1]),
    "norm": "batch",
    "strides": ((2, 2, 1),) * 4,
    "kernels": ((5, 5, 1),) * 5,
    "blocks": (3, 3, 3, 3, 1),
    "decoder_blocks": (3, 3, 3, 3),
    "decoder_widths": (4, *WIDTHS[:-1]),
    "activation": "leaky_relu",
    "order": "act_norm_conv",
}


def names():
    """The names of all convolutions with the norms in front of them."""
    found = naming.Naming(())
    blocks = [(f"encoder/level_{i}/conv_{j}", f"Dense_Down{i}.conv{j + 1}") for i in range(4) for j in range(3)]
    blocks += [(f"decoder/level_{i}/conv_{j}", f"Dense_Up{i}.conv{j + 1}") for i in range(4) for j in range(3)]
    for path, name in [*blocks, ("encoder/level_4/conv_0", "Bneck")]:
        conv, norm = f"layers.{name}.conv", f"layers.{name}.norm"
        found += naming.norm_first(path, conv, norm, "batch")
    return found


def convert(tensors, *, metadata):
    """Take the tensors of `bestbyloss.tar` to a U-Net of five levels with two classes."""
    del metadata
    around = ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0))
    # A kernel of one tap is one of 5 x 5 x 1 with zeros around it.
    own = {
        name: np.pad(part, around) if name.endswith("conv3.conv.weight") else part
        for name, part in tensors.items()
    }  # fmt: skip
    params, used, ignored = naming.take(own, names())
    # A sigmoid of one output is a softmax over 0 and this output.
    mask = "layers.BinaryMask.weight"
    kernel = tensors[mask].reshape(WIDTHS[0], 1)
    params["head"] = {
        "kernel": np.concatenate([np.zeros_like(kernel), kernel], 1),
        "bias": np.array([0, tensors["layers.BinaryMask.bias"][0]], np.float32),
    }
    used |= {"head/kernel": mask, "head/bias": "layers.BinaryMask.bias"}
    ignored += [(name, "a count of batches") for name in tensors if name.endswith("num_batches_tracked")]
    return Imported(params=params, model=MODEL, channels=1, classes=2, used=used, ignored=tuple(ignored))
