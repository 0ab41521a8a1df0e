"""Orbax in one place: saving a job's runs, resuming them, and reading one run without the others.

A checkpoint is a `state` item (the stacked `TrainState`, run axis first, keys as their raw words) and a `meta` item
(JSON). Directories appear under their final name only when complete, so a killed job leaves whole checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxseg import trees
from jaxseg.types import Params, TrainState, UserError

_policies = ocp.checkpoint_managers


def open_manager(directory: Path, *, keep: int) -> ocp.CheckpointManager:
    """A manager that keeps step 0 and the last `keep` steps; use it as a context manager, so that saves are waited for.

    Args:
        directory: Holds one sub-directory per saved step; created when missing.
        keep: At least 1.
    """
    policy = _policies.AnyPreservationPolicy([_policies.LatestN(keep), _policies.CustomSteps([0])])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def _with_raw_key(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def save(manager: ocp.CheckpointManager, step: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Saves a stacked state in the background; the state may be donated or changed once this returns.

    A step that is already saved is left alone: the same step holds the same bits.
    """
    if step in manager.all_steps():
        return
    items = ocp.args.Composite(state=ocp.args.StandardSave(_with_raw_key(state)), meta=ocp.args.JsonSave(meta))
    if not manager.save(step, args=items):
        raise RuntimeError(f"Orbax did not save step {step} in {manager.directory}")


def restore(manager: ocp.CheckpointManager, step: int, like: TrainState) -> TrainState:
    """A saved state of all runs, as NumPy arrays (the key is a typed key).

    Args:
        manager: Manager of the job's directory.
        step: A saved step.
        like: Shapes of one run's state, without the run axis.

    Raises:
        UserError: The saved state has another structure: it comes from other settings.
    """
    raw = jax.eval_shape(_with_raw_key, like)
    # Orbax itself pads or cuts an array of another shape, and fills what is not there with None.
    found = {path: tuple(array.shape) for path, array in _open_arrays(Path(manager.directory), step).items()}
    num_saved = found["step"][0]
    wanted = {path: (num_saved, *leaf.shape) for path, leaf in trees.flatten(raw).items()}
    wrong = [path for path in dict.fromkeys((*wanted, *found)) if wanted.get(path) != found.get(path)]
    if wrong:
        path = wrong[0]
        raise _of_another_study(
            manager.directory,
            step,
            f"{path} is {found.get(path, 'absent')} there and {wanted.get(path, 'absent')} here",
        )

    def as_saved(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.empty((num_saved, *leaf.shape), leaf.dtype)

    try:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(as_saved, raw)))
        state = manager.restore(step, args=items)["state"]
    except ValueError as error:
        raise _of_another_study(manager.directory, step, "its structure is another") from error
    return dataclasses.replace(state, key=jax.random.wrap_key_data(jnp.asarray(state.key), impl="threefry2x32"))


def _of_another_study(directory: Any, step: int, difference: str) -> UserError:
    return UserError(
        f"checkpoint {directory}/{step} does not hold what this study trains ({difference}, run axis first); "
        f"use another workdir, or the settings it was made with"
    )


def saved_steps(directory: Path) -> tuple[int, ...]:
    """Steps saved in a directory, ascending; empty when there is none."""
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()))


def _open_arrays(directory: Path, step: int, prefix: str = "") -> dict[str, ts.TensorStore]:
    """Handles on the arrays at or below a name of the saved state (all for an empty name), by slash-joined path."""
    base = f"file://{(directory / str(step) / 'state').absolute()}/"
    if step not in saved_steps(directory):
        raise UserError(
            f"no checkpoint of step {step} in {directory}; saved steps: {', '.join(map(str, saved_steps(directory)))}"
        )
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    names = sorted(key.decode().removesuffix("/.zarray") for key in store.list().result() if key.endswith(b"/.zarray"))
    opening = {
        name: ts.open(
            {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}, open=True, read=True
        )
        for name in names
        if not prefix or f"{name}.".startswith(f"{prefix}.")
    }
    return {name.replace(".", "/"): array.result() for name, array in opening.items()}


def read_params(directory: Path, step: int, runs: Sequence[int]) -> Params:
    """Parameters of some runs, stacked, as NumPy arrays; needs none of the devices that saved them.

    Args:
        directory: A job's `checkpoints` directory.
        step: A saved step; 0 is the start.
        runs: Positions on the run axis.

    Raises:
        UserError: The step is not saved.
    """
    arrays = _open_arrays(directory, step, "params")
    reads = {path: array[list(runs)].read() for path, array in arrays.items()}
    return trees.unflatten({path: np.asarray(read.result()) for path, read in reads.items()})["params"]


def read_seed(directory: Path, step: int, run: int) -> Params:
    """Parameters of one run as a nested dict of NumPy arrays, read without the others'."""
    return trees.take(read_params(directory, step, [run]), 0)
