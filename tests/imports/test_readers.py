"""Tensors are read by name, whatever a file is called and whatever lies beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxseg.imports import readers
from jaxseg.imports.readers import state
from jaxseg.types import UserError
from tests.imports.weight_files import saved, write_safetensors
from tests.optional import optional_module


def test_a_safetensors_file_under_another_name(tmp_path: Path) -> None:
    held = {"module._orig_mod.w": np.float32([[1, 2]]), "module._orig_mod.num_batches_tracked": np.array(3)}
    found = readers.read(write_safetensors(tmp_path / "weights.pth", held))
    assert {name: array.tolist() for name, array in found.tensors.items()} == {"w": [[1, 2]], "num_batches_tracked": 3}
    assert found.tensors["num_batches_tracked"].dtype == np.int64
    assert found.notes[0] == "weights.pth is a safetensors file, whatever its name says."
    assert "'module._orig_mod.'" in found.notes[1]
    with pytest.raises(UserError, match=r"no tensor 'v'; did you mean 'w'\?|no tensor 'v'\."):
        found.tensors["v"]


def test_sixteen_bits_become_float32_and_are_said(tmp_path: Path) -> None:
    import jax.numpy as jnp

    held = {"a": np.array([0.5, 3], np.float16), "b": np.array([1.5, -2], jnp.bfloat16), "c": np.array([1.0])}
    found = readers.read(write_safetensors(tmp_path / "w.safetensors", held))
    assert {array.dtype for array in found.tensors.values()} == {np.dtype(np.float32)}
    assert {name: array.tolist() for name, array in found.tensors.items()} == {"a": [0.5, 3], "b": [1.5, -2], "c": [1]}
    assert found.dtypes == {"a": "float16", "b": "bfloat16", "c": "float64"}
    assert found.notes == ("Tensors of type bfloat16 and float16 and float64 are converted to float32.",)


def test_names_below_a_prefix(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "w.safetensors", {"net.w": np.ones(2), "loss.w": np.ones(3)})
    found = readers.read(path, prefix="net.")
    assert {name: array.shape for name, array in found.tensors.items()} == {"w": (2,)}
    assert "1 tensor(s) whose names do not begin with 'net.' are not read, as 'loss.w'" in found.notes[0]
    with pytest.raises(UserError, match=r"--prefix=model\.: no tensor"):
        readers.read(path, prefix="model.")


def test_a_checkpoint_of_pytorch_with_all_that_training_leaves_in_it(tmp_path: Path) -> None:
    torch = optional_module("torch")
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    held = {
        "network_weights": {f"module.{name}": value for name, value in network.state_dict().items()},
        "optimizer_state": optimizer.state_dict(),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "init_args": {"plans": {"patch_size": [8, 8]}, "fold": 0},
        "trainer_name": "nnUNetTrainer",
    }
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        found = readers.read(saved(tmp_path / "checkpoint.tar", held, **options))
        np.testing.assert_array_equal(found.tensors["weight"], network.weight.detach().numpy())
        assert list(found.tensors) == ["weight", "bias"]
        assert found.metadata == {"init_args": held["init_args"], "trainer_name": "nnUNetTrainer"}
        assert (
            "those of 'network_weights'; not read: optimizer_state (2 entries), best (a value of NumPy)"
            in (found.notes[0])
        )


def test_the_plans_of_a_checkpoint_come_along_whatever_lies_beside_them() -> None:
    plans = {"transpose_forward": [1, 0, 2], "configurations": {"3d_fullres": {"spacing": (1.0, 1.0, 3.0)}}}
    found = {
        "init_args": {"plans": plans, "configuration": "3d_fullres", "device": object(), "fold": 0},
        "_best": object(),
    }
    kept = state.plain_parts(found)
    wanted = {"transpose_forward": [1, 0, 2], "configurations": {"3d_fullres": {"spacing": [1.0, 1.0, 3.0]}}}
    assert kept == {"init_args": {"plans": wanted, "configuration": "3d_fullres", "fold": 0}}
    optimizer = {"state": {0: {"exp_avg": np.zeros(2)}}, "param_groups": [{"lr": 0.01}]}
    assert state.plain_parts({"order": [0, object()], "name": None, "optimizer": optimizer}) == {"name": None}


def test_an_entry_that_is_asked_for(tmp_path: Path) -> None:
    torch = optional_module("torch")
    held = {"model": {"w": torch.ones(2)}, "ema": {"nested": {"w": torch.zeros(2, dtype=torch.bfloat16)}}}
    path = saved(tmp_path / "w.pt", held)
    assert readers.read(path, key="ema.nested").tensors["w"].tolist() == [0, 0]
    assert readers.read(path, key="model").tensors["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"--key=ema: this entry .* is 1 entries"):
        readers.read(path, key="ema")
    with pytest.raises(UserError, match=r"--key=net: .* has no such entry; it has model"):
        readers.read(path, key="net")


@pytest.fixture
def munet(shared_data: Path) -> Path:
    """A published network of others, as its authors wrote it and as safetensors."""
    folder = shared_data.parent / "weights" / "munet_auxw"
    if not folder.is_dir():
        pytest.skip("the published weights are not beside this checkout")
    return folder


def test_a_published_network_reads_alike_in_both_formats(munet: Path) -> None:
    found = readers.read(munet / "fold1_model.safetensors")
    assert len(found.tensors) == 177
    assert found.tensors["layers.Dense_Down0.conv1.conv.weight"].shape == (4, 1, 5, 5, 1)
    optional_module("torch")
    other = readers.read(munet / "fold1.tar")
    assert other.tensors.keys() == found.tensors.keys()
    for name, array in found.tensors.items():
        np.testing.assert_array_equal(other.tensors[name], array, err_msg=name)
