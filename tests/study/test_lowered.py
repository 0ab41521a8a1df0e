"""Training and prediction in their TPU form can be expressed for a TPU, from a process that has none."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import seeds, trees
from jaxseg.models import conv
from jaxseg.settings import (
    AugmentSettings,
    Compute,
    LossSettings,
    ModelSettings,
    OptimSettings,
    TaskSettings,
    TrainSettings,
)
from jaxseg.study.plan.program import Program, abstract_params, kernels_of_images
from jaxseg.study.train import lowered
from jaxseg.types import RunKey

SIZES = lowered.Sizes(runs=4, cases=3, voxels=4096, windows=2)
DIALECTS = {"builtin", "func", "stablehlo", "sdy", "chlo"}
"""StableHLO; functions and modules around it; meshes and shardings; and functions that every compiler expands."""
CALLS = {
    "Sharding": "a sharding, written as a call",
    "SPMDFullToShardShape": "the start of manual partitioning",
    "SPMDShardToFullShape": "the end of manual partitioning",
}
"""Targets of custom calls that the compiler for TPUs knows, and what each is. They hold no work of their own: versions
of JAX without the dialect sdy write shardings so."""


def faults(text: str) -> list[str]:
    """What of a module's text a TPU could not run: calls into other libraries, callbacks, float64, unknown shapes."""
    found = [
        f"custom call of {target}" for target in re.findall(r"custom_call\s+@([\w.$]+)", text) if target not in CALLS
    ]
    found += sorted({f"type {kind}" for kind in re.findall(r"(?<=[<x])(f64|complex<f64>)(?=>)", text)})
    found += sorted({f"shape {shape}" for shape in re.findall(r"tensor<[^>]*\?[^>]*>", text)})
    dialects = re.findall(r"^\s*(?:%[\w:#, %]+ = )?\"?([a-z_]+)\.[a-z_]+", text, re.MULTILINE)
    found += sorted({f"dialect {name}" for name in dialects} - {f"dialect {name}" for name in DIALECTS})
    found += sorted(
        set(re.findall(r"stablehlo\.(?:infeed|outfeed|send|recv|dynamic_\w*reshape|real_dynamic\w*)", text))
    )
    return found


def program_of(name: str, ndim: int = 3, **changes: Any) -> Program:
    """A small program of a network, with dropout and a norm of its own kind."""
    norm = {"vnet": "batch", "multiscale_fcn": "none"}.get(name, "instance")
    model = ModelSettings(name=name, ndim=ndim, widths=(2, 4), norm=norm, dropout=0.1)  # type: ignore[arg-type]
    task, train = TaskSettings(patch=(8,) * ndim), TrainSettings(batch=2)
    made = Program(task, model, Compute(), OptimSettings(), LossSettings(), train, "none", channels=1, classes=3)
    return dataclasses.replace(made, **changes)


AUGMENTED = TaskSettings(
    patch=(8, 8, 8),
    augment=AugmentSettings(
        **{"flip": (0,), "rotate90": (0, 1), "affine": 0.1, "contrast": 0.1, "blur": 0.1},
        **{"low_resolution": 0.1, "gamma": 0.1, "brightness": 0.1, "noise": 0.1},
    ),
)
PROGRAMS = {
    "unet, 3-D, every augmentation": program_of("unet", task=AUGMENTED),
    "unet, 2-D": program_of("unet", 2),
    "vnet": program_of("vnet"),
    "multiscale_fcn": program_of("multiscale_fcn"),
    "nnunet": program_of("nnunet"),
    "bfloat16": program_of("unet", 2, compute=Compute(precision="bfloat16", remat=True)),
    "shared encoder": program_of(
        "unet", 2, freeze="encoder", shared=RunKey("source", 0, 0, 0), train=TrainSettings(batch=2, keep_best=True)
    ),
}
MESH = 2
"""Devices of the mesh; CPUs stand for those of a TPU."""


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("lower", [lowered.training, lowered.windows])
def test_a_program_lowers_for_tpu(lower: Callable[..., jax.export.Exported], name: str) -> None:
    exported = lower(PROGRAMS[name], tuple(jax.devices()[:MESH]), "tpu", SIZES)
    assert (exported.platforms, exported.nr_devices) == (("tpu",), MESH)
    text = exported.mlir_module()
    assert faults(text) == []
    # In the TPU form each convolution is one of XLA's, grouped by the runs of a device where kernels are their own.
    groups = collections.Counter(map(int, re.findall(r"feature_group_count = (\d+)", text)))
    assert set(groups) <= {1, SIZES.runs // MESH}
    assert groups.total() >= 5
    assert groups[SIZES.runs // MESH] >= 1


def test_the_form_is_that_of_the_platform_asked_for() -> None:
    program, device = PROGRAMS["unet, 2-D"], tuple(jax.devices()[:1])
    assert {name: conv.form_for(name) for name in ("cpu", "gpu", "cuda", "rocm", "tpu")} == {
        "cpu": "products", "gpu": "joined", "cuda": "joined", "rocm": "joined", "tpu": "native",
    }  # fmt: skip
    assert {name: seeds.strategy_for(name) for name in ("cpu", "gpu", "tpu")} == {
        "cpu": "loop", "gpu": "vmap", "tpu": "vmap",
    }  # fmt: skip
    assert program.network.form == "auto"
    assert program.for_platform("tpu").network.form == "native"
    counts = {
        platform: lowered.windows(program, device, platform, SIZES).mlir_module().count("stablehlo.convolution")
        for platform in ("cpu", "tpu")
    }
    # Two a level of the encoder; in the decoder the first takes both its inputs by themselves.
    assert counts == {"cpu": 0, "tpu": 7}


def text_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> str:
    """The module of a function for CPUs."""
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).as_text()


def test_what_a_tpu_could_not_run_is_found() -> None:
    assert faults(text_of(lambda x: jnp.sin(x) @ x, (4, 4))) == []
    assert any("lapack" in fault for fault in faults(text_of(jnp.linalg.qr, (4, 4))))

    def called(x: jax.Array) -> jax.Array:
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert any("callback" in fault for fault in faults(text_of(called, (3,))))
    with jax.enable_x64(True):
        assert "type f64" in faults(text_of(lambda x: x.astype(jnp.float64) + 1, (3,)))
    (count,) = jax.export.symbolic_shape("n")
    of_any = jax.export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((count, 2), jnp.float32)).mlir_module()
    assert any(fault.startswith("shape ") for fault in faults(of_any))


@pytest.mark.parametrize("name", ["unet", "vnet", "multiscale_fcn", "nnunet"])
def test_kernels_that_read_the_image_are_told_from_those_that_have_as_many_channels(name: str) -> None:
    """The first level has two channels, as the image has: a kernel of another width there is no image's."""
    found = program_of(name, channels=2)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(abstract_params(found)).items()}
    kernels = kernels_of_images(found)
    assert kernels
    assert all(path.endswith("kernel") and shapes[path][-2] == 2 for path in kernels)
    alike = {path for path, shape in shapes.items() if path.endswith("kernel") and shape[-2] == 2}
    assert kernels < alike
    assert kernels_of_images(dataclasses.replace(found, channels=3)) == kernels
