"""nnU-Net's networks with weights from PyTorch: the same logits. Needs torch and dynamic-network-architectures."""

import jax
import numpy as np
import pytest

from jaxseg.imports.rules import nnunet
from jaxseg.models.nnunet import NNUNet
from jaxseg.settings import ModelSettings
from tests.optional import optional_module

torch = optional_module("torch")
unets = optional_module("dynamic_network_architectures.architectures.unet")

NETWORKS = {
    "2d": {"ndim": 2, "features": [4, 8, 8], "strides": [1, 2, 2], "kernels": [3, 3, 3], "size": (20, 12)},
    "3d": {"ndim": 3, "features": [4, 6, 8], "strides": [1, 2, 2], "kernels": [3, 3, 3], "size": (12, 20, 8)},
    "anisotropic": {
        "ndim": 3,
        "features": [4, 6, 8, 8],
        "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "size": (6, 24, 40),
    },
}


def built(name, residual, norm="InstanceNorm", **more):
    """A network with random weights, of which no bias or scale is trivial."""
    given = NETWORKS[name]
    ndim, depth = given["ndim"], len(given["features"])
    counts = {"n_blocks_per_stage": [1, 3, 2, 2][:depth]} if residual else {"n_conv_per_stage": [2, 1, 3, 2][:depth]}
    torch.manual_seed(0)
    network = (unets.ResidualEncoderUNet if residual else unets.PlainConvUNet)(
        input_channels=2,
        n_stages=depth,
        features_per_stage=given["features"],
        conv_op=getattr(torch.nn, f"Conv{ndim}d"),
        kernel_sizes=given["kernels"],
        strides=given["strides"],
        num_classes=3,
        n_conv_per_stage_decoder=[1, 2, 1][: depth - 1],
        conv_bias=True,
        norm_op=getattr(torch.nn, f"{norm}{ndim}d"),
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        **counts,
        **more,
    ).eval()
    with torch.no_grad():
        for path, tensor in network.state_dict().items():
            if tensor.ndim == 1 and tensor.is_floating_point():
                start = 1 if "norm.weight" in path or "var" in path else 0
                tensor.copy_(start + 0.2 * torch.randn_like(tensor).clamp(-2, 2))
    return network


def logits_of(network, imported, image, axes):
    """Logits `[batch, classes, *spatial]` of PyTorch and of jaxseg, which has the image's axes in its own order."""
    back = np.argsort(axes)
    model = NNUNet(ModelSettings(**imported.model), imported.classes, "native")
    ours = np.moveaxis(image, 1, -1).transpose(0, *(1 + axis for axis in axes), len(axes) + 1)
    logits = np.asarray(jax.jit(model.apply)({"params": imported.params}, ours))
    with torch.no_grad():
        want = network(torch.from_numpy(image)).numpy()
    return want, np.moveaxis(logits.transpose(0, *(1 + axis for axis in back), len(axes) + 1), -1, 1)


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize(
    ("name", "norm"),
    [("2d", "BatchNorm"), *((name, "InstanceNorm") for name in NETWORKS)],
)
def test_logits_are_those_of_pytorch(name, residual, norm):
    network = built(name, residual, norm)
    tensors = {path: tensor.numpy() for path, tensor in network.state_dict().items()}
    imported = nnunet.convert(tensors, metadata={})
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 2, *NETWORKS[name]["size"])).astype(np.float32)
    want, got = logits_of(network, imported, image, nnunet.axes_of(None, NETWORKS[name]["ndim"]))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std())
