"""Orbax in one place: saving a job's runs, resuming them, and reading one run without the others.

A checkpoint is a `state` item (the stacked `TrainState`, run axis first, keys as their raw words), where runs share
frozen parameters a `shared` item (no run axis), and a `meta` item (JSON: what the job says of itself, and a checksum of
every array, run by run). Directories appear under their final name only when complete, so a killed job leaves whole
checkpoints; what a disk does to them later the checksums tell.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxseg import hosts, trees
from jaxseg.types import Frozen, Params, TrainState, UserError

CHECKSUMS = "crc32"
"""Entry of `meta`."""

_policies = ocp.checkpoint_managers


@contextlib.contextmanager
def open_manager(directory: Path, *, keep: int, snapshots: Sequence[int] = ()) -> Iterator[ocp.CheckpointManager]:
    """A manager that keeps step 0, the last steps and snapshots; at its end saves are waited for.

    Args:
        directory: Holds one sub-directory per saved step; created when missing.
        keep: How many of the last; at least 1.
        snapshots: Steps kept for good.
    """
    policy = _policies.AnyPreservationPolicy([_policies.LatestN(keep), _policies.CustomSteps([0, *snapshots])])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
    manager = ocp.CheckpointManager(directory.absolute(), options=options)
    try:
        yield manager
    except hosts.LostHostError:
        raise  # closing would wait for those that are gone
    except BaseException:
        manager.close()
        raise
    else:
        manager.close()


def _with_raw_key(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def _sum_rows(array: Any) -> list[int]:
    return [zlib.crc32(row.tobytes()) for row in np.asarray(array)]


def _sum_all_rows(array: Any) -> list[int]:
    """Checksums of the rows of all hosts; each host has its own rows' and hears the others'."""
    return hosts.gather(np.array(_sum_rows(array), np.int64)).tolist()


def _sum_shared(array: Any) -> int:
    return zlib.crc32(np.asarray(array).tobytes())


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    meta: dict[str, Any],
    shared: Frozen | None = None,
    *,
    join: Callable[[Any], Any] = lambda tree: tree,
) -> None:
    """Saves a stacked state in the background; the state may be donated or changed once this returns.

    A step that is already saved is left alone: the same step holds the same bits.

    Args:
        manager: Of the job's directory.
        step: The state's step.
        state: Run axis first; with several hosts, this host's runs.
        meta: JSON that says what the runs are.
        shared: Frozen parameters of all runs, without a run axis.
        join: Makes one array of what the hosts have; see `seeds.across_hosts`.
    """
    if step in manager.all_steps():
        return
    raw, common = _with_raw_key(state), shared or {}
    sums = {f"state/{path}": _sum_all_rows(leaf) for path, leaf in trees.flatten(raw).items()}
    common_sums = {f"shared/{path}": _sum_shared(leaf) for path, leaf in trees.flatten(common).items()}
    items: dict[str, Any] = {
        "state": ocp.args.StandardSave(join(raw)),
        "meta": ocp.args.JsonSave(meta | {CHECKSUMS: sums | common_sums}),
    }
    if common:
        items["shared"] = ocp.args.StandardSave(common)
    if not manager.save(step, args=ocp.args.Composite(**items)):
        raise RuntimeError(f"Orbax did not save step {step} in {manager.directory}")


def restore(
    manager: ocp.CheckpointManager, step: int, like: TrainState, rows: Sequence[int] | None = None
) -> TrainState:
    """The saved state of some runs, or of all and what pads them, as NumPy arrays (the key is a typed key).

    Args:
        manager: Manager of the job's directory.
        step: A saved step.
        like: Shapes of one run's state, without the run axis.
        rows: Positions on the saved run axis, which may be padded for another number of devices; None for all.

    Raises:
        UserError: The saved state has another structure: it comes from other settings.
    """
    raw = jax.eval_shape(_with_raw_key, like)
    # Not by Orbax, which pads or cuts an array of another shape and fills what is not there with None.
    arrays = _open_arrays(Path(manager.directory), step)
    found = {path: tuple(array.shape) for path, array in arrays.items()}
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

    chosen = range(num_saved) if rows is None else rows
    reads = {path: array[list(chosen)].read() for path, array in arrays.items()}
    state = trees.map_with_path(lambda path, _: reads[path].result(), raw)
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


def read_meta(directory: Path, step: int) -> dict[str, Any]:
    """What a job said of a saved step, with the arrays' checksums."""
    return json.loads((directory / str(step) / "meta" / "metadata").read_text())


def damage(directory: Path, step: int) -> str | None:
    """What is wrong with a checkpoint's files: arrays that cannot be read or differ from their checksums; else None."""
    try:
        sums = read_meta(directory, step)[CHECKSUMS]
        arrays = {f"state/{path}": array for path, array in _open_arrays(directory, step).items()}
        if any(path.startswith("shared/") for path in sums):
            arrays |= {f"shared/{path}": array for path, array in _open_arrays(directory, step, item="shared").items()}
        if arrays.keys() != sums.keys():
            return f"{len(sums)} arrays were saved, {len(arrays)} are there"
        for path, array in arrays.items():
            found = array.read().result()
            if sums[path] != (_sum_shared(found) if path.startswith("shared/") else _sum_rows(found)):
                return f"{path} differs from its checksum"
    # Whatever a damaged file makes the readers raise: a cut manifest, bytes that do not decompress, a missing file.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'unreadable'}"
    return None


def latest_sound(directory: Path) -> int | None:
    """The last saved step whose files are as they were written; None where there is none.

    Later steps that are damaged are warned of and set aside, in a folder `damaged` beside this one.
    """
    for step in reversed(saved_steps(directory)):
        reason = damage(directory, step)
        if reason is None:
            return step
        aside = directory.parent / "damaged"
        aside.mkdir(exist_ok=True)
        number = len(list(aside.iterdir()))
        os.replace(directory / str(step), aside / f"{step}_{number}")
        warnings.warn(
            f"checkpoint {directory / str(step)} is damaged ({reason}); set aside in {aside}, "
            f"going on from the one before",
            stacklevel=2,
        )
    return None


def _open_arrays(directory: Path, step: int, prefix: str = "", item: str = "state") -> dict[str, ts.TensorStore]:
    """Handles on the arrays at or below a name of a saved item (all for an empty name), by slash-joined path."""
    base = f"file://{(directory / str(step) / item).absolute()}/"
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


def _read_checked(arrays: dict[str, ts.TensorStore], runs: Sequence[int], sums: dict[str, Any], where: str) -> Any:
    reads = {path: array[list(runs)].read() for path, array in arrays.items()}
    found = {path: np.asarray(read.result()) for path, read in reads.items()}
    for path, array in found.items():
        if _sum_rows(array) != [sums[f"state/{path}"][run] for run in runs]:
            raise UserError(
                f"checkpoint {where}: {path} differs from its checksum, the file is damaged; delete that folder and "
                f"run the study again, which goes on from the checkpoint before"
            )
    return found


def read_own_params(directory: Path, step: int, runs: Sequence[int]) -> Params:
    """Parameters of some runs, stacked, without those that all runs of the job share (`read_shared`).

    Args:
        directory: A job's `checkpoints` directory.
        step: A saved step; 0 is the start.
        runs: Positions on the run axis.

    Raises:
        UserError: The step is not saved, or its files are damaged.
    """
    arrays = _open_arrays(directory, step, "params")
    sums = read_meta(directory, step)[CHECKSUMS]
    return trees.unflatten(_read_checked(arrays, runs, sums, f"{directory}/{step}"))["params"]


def read_shared(directory: Path, step: int) -> Frozen:
    """Frozen parameters that all runs of a job share; `{}` where there are none."""
    if not (directory / str(step) / "shared").is_dir():
        return {}
    arrays = _open_arrays(directory, step, item="shared")
    return trees.unflatten({path: np.asarray(array.read().result()) for path, array in arrays.items()})


def read_params(directory: Path, step: int, runs: Sequence[int]) -> Params:
    """All parameters of some runs, stacked, as NumPy arrays; needs none of the devices that saved them.

    Args and errors are those of `read_own_params`.
    """
    shared = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(runs), *leaf.shape)), read_shared(directory, step))
    return trees.merge(read_own_params(directory, step, runs), shared)


def read_seed(directory: Path, step: int, run: int) -> Params:
    """Parameters of one run as a nested dict of NumPy arrays, read without the others'."""
    return trees.take(read_params(directory, step, [run]), 0)


def read_best(directory: Path, step: int, run: int) -> tuple[Params, int, float]:
    """One run's parameters of its best validation up to a saved step, that validation's step, and its DSC.

    Raises:
        UserError: The job kept no best parameters.
    """
    arrays = _open_arrays(directory, step, "best")
    if not arrays:
        raise UserError(f"checkpoint {directory}/{step} holds no best parameters; train with train.keep_best = True")
    sums = read_meta(directory, step)[CHECKSUMS]
    best = trees.take(trees.unflatten(_read_checked(arrays, [run], sums, f"{directory}/{step}"))["best"], 0)
    return trees.merge(best["params"], read_shared(directory, step)), int(best["step"]), float(best["dsc"])


def param_shapes(directory: Path, step: int) -> Params:
    """Shapes and types of one run's parameters, without reading them."""
    own = {path: (array.shape[1:], array) for path, array in _open_arrays(directory, step, "params").items()}
    shared = read_shared(directory, step)
    shapes = {path: jax.ShapeDtypeStruct(shape, array.dtype.numpy_dtype) for path, (shape, array) in own.items()}
    return trees.merge(trees.unflatten(shapes)["params"], shared)
