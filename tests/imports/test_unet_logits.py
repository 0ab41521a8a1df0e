"""U-Nets of PyTorch with their weights: the same logits. Needs torch; one test needs platelet-unet-watershed."""

import importlib.util
import os
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxseg import trees
from jaxseg.imports import naming
from jaxseg.imports.kinds import Tensors
from jaxseg.imports.rules import torch_unet
from jaxseg.models.unet import UNet
from jaxseg.settings import ModelSettings
from tests.conftest import ROOT
from tests.networks import draw_params, shapes_of
from tests.optional import ALL_PACKAGES, optional_module

torch = optional_module("torch")


def logits_of(imported, image):
    """Logits `[batch, classes, *reversed axes]` of jaxseg for an image as PyTorch has it."""
    model = UNet(ModelSettings(**imported.model), imported.classes, "native")
    logits = jax.jit(model.apply)({"params": imported.params}, image.transpose(0, *range(2, image.ndim)[::-1], 1))
    return np.asarray(logits).transpose(0, -1, *range(1, image.ndim - 1)[::-1])


def test_the_platelet_network_has_the_logits_of_its_package():
    found = importlib.util.find_spec("plateseg")
    if found is None:
        assert not os.environ.get(ALL_PACKAGES)
        pytest.skip("platelet-unet-watershed is not installed")
    folder = Path(found.submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(
        "platelet_unet", folder / "unet.py"
    )  # the package itself needs napari
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.UNet(in_channels=1, out_channels=5).eval()
    (weights,) = (folder / "data").glob("*.pt")
    network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    network.c8_0.final = "none"  # logits are what the sigmoid takes
    imported = torch_unet.convert({name: part.numpy() for name, part in network.state_dict().items()}, metadata={})
    image = np.random.default_rng(0).random((1, 1, 4, 32, 16)).astype(np.float32)
    with torch.no_grad():
        want = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(logits_of(imported, image), want, rtol=0, atol=1e-4)
    names = torch_unet.modules_naming(ModelSettings(**imported.model))
    back = naming.give(imported.params, names, ndim=3, axes=(2, 1, 0))
    network.load_state_dict({**network.state_dict(), **{name: torch.from_numpy(part) for name, part in back.items()}})
    with torch.no_grad():
        again = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(again, want, rtol=0, atol=1e-4)


def double_convolution(channels, features):
    layers = []
    for inputs in (channels, features):
        layers += [torch.nn.Conv2d(inputs, features, 3, padding=1, bias=False)]
        layers += [torch.nn.BatchNorm2d(features), torch.nn.ReLU()]
    return torch.nn.ModuleDict({"double_conv": torch.nn.Sequential(*layers)})


def test_skips_that_come_first_are_put_behind_what_is_upsampled():
    """Pytorch-UNet of three levels, with the names of its modules."""
    torch.manual_seed(0)
    widths = (4, 6, 8)
    network = torch.nn.ModuleDict({"inc": double_convolution(2, widths[0])})
    for i in (1, 2):
        block = torch.nn.ModuleList([torch.nn.MaxPool2d(2), double_convolution(widths[i - 1], widths[i])])
        network[f"down{i}"] = torch.nn.ModuleDict({"maxpool_conv": block})
        up = torch.nn.ConvTranspose2d(widths[3 - i], widths[2 - i], 2, stride=2)
        network[f"up{i}"] = torch.nn.ModuleDict(
            {"up": up, "conv": double_convolution(2 * widths[2 - i], widths[2 - i])}
        )
    network["outc"] = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(widths[0], 3, 1)})
    image = torch.randn(2, 2, 8, 12)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            for tensor in part.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(1 + 0.3 * torch.rand_like(tensor))
    with torch.no_grad():
        network.eval()
        levels = [network["inc"]["double_conv"](image)]
        for i in (1, 2):
            pool, conv = network[f"down{i}"]["maxpool_conv"]
            levels.append(conv["double_conv"](pool(levels[-1])))
        x = levels.pop()
        for i in (1, 2):
            x = torch.cat([levels.pop(), network[f"up{i}"]["up"](x)], 1)
            x = network[f"up{i}"]["conv"]["double_conv"](x)
        want = network["outc"]["conv"](x).numpy()
    imported = torch_unet.convert({name: part.numpy() for name, part in network.state_dict().items()}, metadata={})
    np.testing.assert_allclose(logits_of(imported, image.numpy()), want, rtol=0, atol=1e-4 * want.std())


def munet_level(tensors, name, x):
    """A level of MU-Net: leaky ReLU, batch norm and convolution, three times."""
    for i in (1, 2, 3):
        norm, conv = (f"layers.{name}.conv{i}.{part}" for part in ("norm", "conv"))
        statistics = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
        x = torch.nn.functional.leaky_relu(x)
        x = torch.nn.functional.batch_norm(x, *statistics, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"])
        weight = tensors[f"{conv}.weight"]
        padding = [(taps - 1) // 2 for taps in weight.shape[2:]]
        x = torch.nn.functional.conv3d(x, weight, tensors[f"{conv}.bias"], padding=padding)
    return x


def test_the_encoder_of_munet_has_its_features():
    """With random weights of the shapes that the example of rules is for."""
    rules = runpy.run_path(str(ROOT / "examples" / "munet_rules.py"))
    settings = ModelSettings(**rules["MODEL"])
    model = UNet(settings, 2, "native")
    params = draw_params(shapes_of(settings, (32, 32, 2), classes=2))
    tensors = Tensors(naming.give(params, rules["names"](), ndim=3))
    for name in [name for name in tensors if name.endswith("conv3.conv.weight")]:
        tensors[name] = tensors[name][:, :, 2:3, 2:3]
    tensors["layers.BinaryMask.weight"] = np.ones((1, 4, 1, 1, 1), np.float32)
    tensors["layers.BinaryMask.bias"] = np.ones(1, np.float32)
    imported = rules["convert"](tensors, metadata={})
    assert set(trees.flatten(imported.params)) == set(trees.flatten(params))
    image = np.random.default_rng(0).normal(size=(1, 32, 16, 2, 1)).astype(np.float32)
    got = jax.jit(lambda p, x: model.apply({"params": p}, x, method="encode"))(imported.params, image)
    theirs = {name: torch.from_numpy(part) for name, part in tensors.items()}
    x = torch.from_numpy(np.moveaxis(image, -1, 1))
    for i in range(4):
        x = munet_level(theirs, f"Dense_Down{i}", x if i == 0 else torch.nn.functional.max_pool3d(x, (2, 2, 1)))
        np.testing.assert_allclose(np.moveaxis(got[i], -1, 1), x, rtol=0, atol=1e-4 * float(x.std()))
