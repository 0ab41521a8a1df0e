"""All use of Orbax: saving the runs of a job, resuming them, and reading one run without the others.

A checkpoint has these items: `state` (the stacked `TrainState`, run axis first, keys as their raw words); `shared` (no
run axis), if runs share frozen parameters; `log` (the measurements so far); and `meta` (JSON with the description of
the job, a checksum of every array, run by run, and a checksum of this JSON). Directories appear under their final name
only when they are complete, so that a killed job leaves whole checkpoints. The checksums detect later damage by the
disk; no array is returned before it was compared with its checksum.

Arrays are stored with one chunk per run, so that one run can be read without the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxseg import hosts, paths, stored, trees
from jaxseg.manifest import DamagedError
from jaxseg.stored import CHECKSUMS as CHECKSUMS
from jaxseg.stored import START as START
from jaxseg.stored import read_meta as read_meta
from jaxseg.stored import saved_steps as saved_steps
from jaxseg.types import Frozen, Params, TrainState, UserError

_NETWORK = ("state/params", "state/average", "shared")
"""Arrays of a checkpoint that make up the networks that are scored."""
_policies = ocp.checkpoint_managers


@contextlib.contextmanager
def open_manager(directory: Path, *, keep: int, snapshots: Sequence[int] = ()) -> Iterator[ocp.CheckpointManager]:
    """Open a manager that keeps step 0, the last steps and the snapshots; on exit it waits for pending saves.

    Args:
        directory: Directory with one sub-directory per saved step; created if missing.
        keep: Number of last steps to keep; at least 1.
        snapshots: Steps that are never removed.
    """
    policy = _policies.AnyPreservationPolicy([_policies.LatestN(keep), _policies.CustomSteps([0, *snapshots])])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
    manager = ocp.CheckpointManager(paths.real(directory), options=options)
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


def _sum_all_rows(array: Any) -> list[int]:
    """Return the checksums of the rows of all hosts; each host computes those of its own rows and gathers the rest."""
    return hosts.gather(np.array(stored.sum_rows(array), np.int64)).tolist()


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    meta: dict[str, Any],
    shared: Frozen | None = None,
    log: Mapping[str, np.ndarray] | None = None,
    *,
    join: Callable[[Any], Any] = lambda tree: tree,
) -> dict[str, Any]:
    """Save a stacked state in the background; the state may be donated or changed once this returns.

    A step that is already saved is left alone: the same step holds the same bits.

    Args:
        manager: Manager of the job's directory.
        step: Step of the state.
        state: Stacked state, run axis first; with several hosts, this host's runs.
        meta: JSON values that describe the runs.
        shared: Frozen parameters that all runs share, without a run axis.
        log: Measurements so far; none of the arrays is empty.
        join: Joins the arrays of all hosts into one; see `seeds.across_hosts`.

    Returns:
        The checksums of the saved arrays.
    """
    raw = _with_raw_key(state)
    whole = {"shared": shared or {}, "log": dict(log or {})}
    sums: dict[str, Any] = {f"state/{path}": _sum_all_rows(leaf) for path, leaf in trees.flatten(raw).items()}
    for item, tree in whole.items():
        sums |= {f"{item}/{path}": stored.sum_whole(leaf) for path, leaf in trees.flatten(tree).items()}
    if step in manager.all_steps():
        return sums
    joined = join(raw)
    by_run = jax.tree.map(lambda leaf: ocp.SaveArgs(shard_axes=(0,)), joined)
    items: dict[str, Any] = {
        "state": ocp.args.StandardSave(joined, save_args=by_run),
        "meta": ocp.args.JsonSave(stored.sealed(meta | {CHECKSUMS: sums})),
    }
    items |= {item: ocp.args.StandardSave(tree) for item, tree in whole.items() if tree}
    if not manager.save(step, args=ocp.args.Composite(**items)):
        raise RuntimeError(f"Orbax did not save step {step} in {manager.directory}")
    return sums


def restore(
    manager: ocp.CheckpointManager, step: int, like: TrainState, rows: Sequence[int] | None = None
) -> TrainState:
    """Return the saved state of some runs, or of all runs with padding, as NumPy arrays (the key is a typed key).

    Args:
        manager: Manager of the job's directory.
        step: Step that is saved.
        like: Shapes of the state of one run, without the run axis.
        rows: Positions on the saved run axis, which may be padded for another number of devices; None for all rows.

    Raises:
        UserError: The saved state has another structure (it comes from other settings), or is damaged.
    """
    raw = jax.eval_shape(_with_raw_key, like)
    # Orbax does not do this: it pads or cuts arrays of another shape and fills missing ones with None.
    arrays = stored.open_item(Path(manager.directory), step, "state")
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

    read = stored.read_checked(Path(manager.directory), step, arrays, range(num_saved) if rows is None else rows)
    state = trees.map_with_path(lambda path, _: read[path], raw)
    return dataclasses.replace(state, key=jax.random.wrap_key_data(jnp.asarray(state.key), impl="threefry2x32"))


def _of_another_study(directory: Any, step: int, difference: str) -> UserError:
    return UserError(
        f"checkpoint {directory}/{step} does not hold what this study trains ({difference}, run axis first); "
        f"use another workdir, or the settings it was made with"
    )


def damage(directory: Path, step: int) -> str | None:
    """Describe the damage to a checkpoint (unreadable arrays, or arrays that differ from their checksums), or None.

    Raises:
        OSError: Files exist but cannot be read at the moment, which is not damage.
    """
    try:
        sums = read_meta(directory, step)[CHECKSUMS]
        found: set[str] = set()
        for item in sorted({path.partition("/")[0] for path in sums}):
            for path, array in stored.open_arrays(directory, step, item=item).items():
                name, values = f"{item}/{path}", array.read().result()
                found.add(name)
                sum_of = stored.sum_whole if item in stored.WITHOUT_RUNS else stored.sum_rows
                if sums.get(name) != sum_of(values):
                    return f"{name} differs from its checksum"
        if missing := sorted(sums.keys() - found):
            return f"{missing[0]} is not there"
    except DamagedError as error:
        return f"{error.path.name}: {error.reason}"
    except UserError:
        raise  # a folder that TensorStore cannot name
    # Whatever a damaged file makes the readers raise: a cut manifest, bytes that do not decompress, a missing file.
    except Exception as error:
        stored.let_the_machine_speak(error, directory / str(step))
        return f"{type(error).__name__}: {stored.first_line(error)}"
    return None


def latest_sound(directory: Path) -> int | None:
    """Return the last saved step whose files are as they were written; None if there is none.

    Damaged later steps are reported in a warning and set aside.

    Raises:
        OSError: Files cannot be read at the moment; they are not set aside for it.
    """
    for step in reversed(saved_steps(directory)):
        reason = damage(directory, step)
        if reason is None:
            return step
        aside = set_aside(directory, step)
        warnings.warn(
            f"checkpoint {directory / str(step)} is damaged ({reason}); set aside as {aside}, "
            f"going on from the one before",
            stacklevel=2,
        )
    return None


def set_aside(directory: Path, step: int) -> Path:
    """Move a step, if it exists, to a folder `damaged` beside the directory, and return its new path."""
    aside = directory.parent / "damaged"
    aside.mkdir(exist_ok=True)
    place = next(free for number in itertools.count() if not (free := aside / f"{step}_{number}").exists())
    if (directory / str(step)).exists():
        os.replace(directory / str(step), place)
    return place


def networks_of(directory: Path, steps: Iterable[int]) -> dict[str, str]:
    """Return a checksum, by step, of the networks that steps hold, by which those that were trained anew are told.

    Steps that are not saved, or cannot be read, are left out.

    Args:
        directory: The `checkpoints` directory of a job.
        steps: Steps that may be saved.
    """
    found = {}
    for step in sorted({*steps} & {*saved_steps(directory)}):
        with contextlib.suppress(UserError):
            sums = read_meta(directory, step)[CHECKSUMS]
            own = {path: sums[path] for path in sorted(sums) if path.startswith(_NETWORK)}
            found[str(step)] = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
    return found


def read_own_params(directory: Path, step: int, runs: Sequence[int]) -> Params:
    """Read the stacked parameters of some runs, without those that all runs of the job share (`read_shared`).

    These are the networks used for scoring, analysis and prediction: late averages where training made them.

    Args:
        directory: The `checkpoints` directory of a job.
        step: Step that is saved; 0 is the start.
        runs: Positions on the run axis.

    Raises:
        UserError: The step is not saved, or its files are damaged.
    """
    params, average = (stored.read_below(directory, step, name, runs) for name in ("params", "average"))
    return params if average is None else trees.replace(params, average)


def read_shared(directory: Path, step: int) -> Frozen:
    """Read the frozen parameters that all runs of a job share; `{}` if there are none.

    Raises:
        UserError: The step is not saved, or its files are damaged.
    """
    return stored.read_whole(directory, step, "shared")


def read_log(directory: Path, step: int) -> dict[str, np.ndarray]:
    """Read the measurements up to a step (see `jaxseg.logs`); `{}` if there are none yet.

    Raises:
        UserError: The step is not saved, or its files are damaged.
    """
    return stored.read_whole(directory, step, "log")


def read_params(directory: Path, step: int, runs: Sequence[int]) -> Params:
    """Read all parameters of some runs, stacked, as NumPy arrays; the devices that saved them are not needed.

    The arguments and errors are those of `read_own_params`.
    """
    shared = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(runs), *leaf.shape)), read_shared(directory, step))
    return trees.merge(read_own_params(directory, step, runs), shared)


def read_seed(directory: Path, step: int, run: int) -> Params:
    """Read the parameters of one run as a nested dict of NumPy arrays, without reading other runs."""
    return trees.take(read_params(directory, step, [run]), 0)


def params_digest(directory: Path, step: int, run: int) -> str:
    """Return a digest of the parameters of one run: the checksum of their checksums, without reading them."""
    sums = read_meta(directory, step)[CHECKSUMS]
    own = {path: of_runs[run] for path, of_runs in sums.items() if path.startswith(("state/params/", "state/average/"))}
    shared = {path: value for path, value in sums.items() if path.startswith("shared/")}
    return hashlib.sha256(json.dumps(own | shared, sort_keys=True).encode()).hexdigest()


def read_best(directory: Path, step: int, run: int) -> tuple[Params, int, float]:
    """Read a run's parameters at its best validation up to a saved step, with that validation's step and DSC.

    Raises:
        UserError: The job kept no best parameters.
    """
    stacked = stored.read_below(directory, step, "best", [run])
    if stacked is None:
        raise UserError(f"checkpoint {directory}/{step} holds no best parameters; train with train.keep_best = True")
    best = trees.take(stacked, 0)
    return trees.merge(best["params"], read_shared(directory, step)), int(best["step"]), float(best["dsc"])


def param_shapes(directory: Path, step: int) -> Params:
    """Return the shapes and dtypes of the parameters of one run, without reading them."""
    own = {
        path: (array.shape[1:], array) for path, array in stored.open_item(directory, step, "state", "params").items()
    }
    shared = read_shared(directory, step)
    shapes = {path: jax.ShapeDtypeStruct(shape, array.dtype.numpy_dtype) for path, (shape, array) in own.items()}
    return trees.merge(trees.unflatten(shapes)["params"], shared)
