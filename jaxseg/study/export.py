"""Writes one network of a finished study for programs without jaxseg, and checks what was written by reading it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxseg import inference, settings, streams, trees
from jaxseg.exports import formats, program, state_dict
from jaxseg.exports.formats import Format, StateDict
from jaxseg.models import Network, make_model
from jaxseg.regions import THRESHOLD
from jaxseg.study import outputs
from jaxseg.study.api import Arm, FinishedStudy
from jaxseg.study.record import RecordedTask
from jaxseg.types import Params, UserError

TOLERANCE = 1e-4
"""By how much results may differ from jaxseg's, in float32; of logits above 1, relative to the largest."""
WINDOWS = 2
"""Number of windows of noise on which they are compared."""
_SEAL = "sha256_of_the_rest"
"""Field of the metadata with the checksum of its other fields, from which an export is known again."""


class Exported(NamedTuple):
    """The files of an export, and what their check found."""

    files: tuple[Path, ...]
    check: str


def export_network(
    study: FinishedStudy, arm: Arm, *, seed: int, kind: Format, output: Path, step: int | str | None = None
) -> Exported:
    """Writes the network of one seed, reads the files again, and compares them with the network.

    Args:
        study: The study.
        arm: One of its arms.
        seed: One of the arm's seeds.
        kind: Format of the file.
        output: The file, if its name ends as files of the format do; otherwise a folder, which gets a file `network`.
        step: See `Arm.params`; None for the network that is scored.

    Raises:
        UserError: There is no such network, it has no counterpart in the format, the place is taken, or what was
            written does not give the network's results.
    """
    path = place(output, kind)
    outputs.check_folder(path.parent, arm.workdir)
    formats.require(kind)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), arm.params(seed, step))
    about = describe(study, arm, seed=seed, kind=kind, step=step)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise UserError(f"arm {arm.settings.name!r}, seed {seed}: parameters are not finite numbers; none is exported")
    about["trained"]["parameters"] = _digest(params)
    # XLA's own convolution: it is the form that every platform has, and the most exact one (docs/export.md).
    overlapping = arm.target.regions is not None
    made = make_model(arm.settings.model, classes=arm.target.outputs, overlapping=overlapping)
    network = made.clone(form="native")
    contents = {path.name: _encode(kind, network, params, about)}
    if kind != "jax" and network.settings.name in state_dict.NETWORKS:
        contents["network.py"] = state_dict.NETWORK.read_bytes()
    contents[path.name + ".json"] = _sealed(about, contents)
    for name, content in contents.items():
        _refuse_foreign(path.with_name(name), content, listed_by=path)
    outputs.make_folder(path.parent)
    for name, content in contents.items():
        outputs.write_file(path.with_name(name), content)
    return Exported(tuple(map(path.with_name, contents)), _check(kind, path, network, params, about))


def place(output: Path, kind: Format) -> Path:
    """Returns the file of an export: `output` itself, or a file in it if it is a folder.

    Raises:
        UserError: The name ends as files of another format do.
    """
    endings = formats.ENDINGS[kind]
    others = {ending: other for other, found in formats.ENDINGS.items() for ending in found}
    if output.is_dir() or output.suffix not in others:
        return output / f"network{endings[0]}"
    if output.suffix not in endings:
        raise UserError(
            f"--output={output}: {output.suffix} is the ending of --format={others[output.suffix]}; with "
            f"--format={kind} a file's name ends in {' or '.join(endings)}"
        )
    return output


def describe(
    study: FinishedStudy, arm: Arm, *, seed: int, kind: Format, step: int | str | None = None
) -> dict[str, Any]:
    """Returns the metadata of an export, as JSON values.

    Raises:
        UserError: The seed's training diverged, or the network has no counterpart in the format.
    """
    run, task, target = arm.runs[seed], arm.study.target, arm.target
    if run.diverged_at is not None:
        raise UserError(
            f"arm {arm.settings.name!r}, seed {seed} diverged at step {run.diverged_at}: it has no scores, and its "
            f"weights are not exported; seeds that did not: {_sound(arm)}"
        )
    model, channels, classes = arm.settings.model, target.channels, target.outputs
    fields = json.loads(json.dumps(dataclasses.asdict(model))) | {"channels": channels, "classes": classes}
    if kind != "jax":
        fields = state_dict.network_arguments(model, channels=channels, classes=classes)
    axes = ("x", "y", "z") if task.slice_axis is None else tuple(np.delete(("x", "y", "z"), task.slice_axis))
    spatial = ", ".join(axes[: model.ndim])
    inner = f"channels, {spatial}" if kind != "jax" else f"{spatial}, channels"
    given = task.spacing_mm if target.spacing_mm is None else list(target.spacing_mm)
    return {
        "made_by": f"jaxseg {packages.version('jaxseg')}",
        "format": kind,
        "network": fields,
        **_outputs(target),
        "window": list(task.patch),
        "axes": f"[windows, {inner}], in RAS+ orientation",
        "preparation": {
            "spacing_mm": given,
            "as_slices": task.as_slices,
            "clip": list(task.clip),
            "normalization": list(target.normalization),
            "dataset_windows": [list(part) for part in target.windows[arm.fold]] if target.windows else [],
        },
        "trained": {
            "study": study.record.name,
            "config_digest": settings.digest(study.config),
            "git_commit": study.record.git_commit,
            "arm": arm.settings.name,
            "seed": seed,
            "train_cases": run.train_cases,
            "fold": run.fold,
            "step": run.steps if step is None else step,
            "average": _average(arm, step),
            "precision": arm.settings.train.compute.precision,
            "started_from": _checkpoint_of(study, arm),
        },
    }


def _average(arm: Arm, step: int | str | None) -> float:
    """The share of the steps whose weights were averaged for what a step holds; 0 where it holds those of the step."""
    train = arm.settings.train
    return train.average if step is None or step in train.scored_at else 0.0


def _outputs(target: RecordedTask) -> dict[str, Any]:
    """What the network's outputs mean: classes that share a softmax, or regions with a sigmoid each."""
    if target.regions is None:
        return {"labels": ["background", *target.labels], "label_values": [0, *target.label_values]}
    value = (0, *target.label_values)
    return {
        "labels": list(target.labels),
        "label_values": [0, *target.label_values],
        "regions": {
            "outputs": f"a sigmoid each; a voxel is in a region where its probability is above {THRESHOLD:g}",
            "label_values": [[value[index] for index in group] for group in target.regions.members],
            "regions_class_order": [value[index] for index in target.regions.written],
        },
    }


def _checkpoint_of(study: FinishedStudy, arm: Arm) -> dict[str, str] | None:
    """The checkpoint of someone else's that an arm began with, with its licence; None if it began with none."""
    made = study.record.arms[arm.settings.name].pretrain
    return None if made is None or made.checkpoint is None else made.checkpoint._asdict()


def _sound(arm: Arm) -> str:
    return ", ".join(str(seed) for seed, run in arm.runs.items() if run.diverged_at is None) or "none"


def _digest(params: Params) -> str:
    """Checksum of all parameters with their paths."""
    digest = hashlib.sha256()
    for path, leaf in sorted(trees.flatten(params).items()):
        digest.update(f"{path} {leaf.shape} ".encode() + np.ascontiguousarray(leaf, "<f4").tobytes())
    return digest.hexdigest()


def _encode(kind: Format, network: Network, params: Params, about: Mapping[str, Any]) -> bytes:
    if kind == "jax":
        channels = about["network"]["channels"]
        made = program.window_program(network, params, patch=about["window"], channels=channels)
        return bytes(made.serialize())
    state = StateDict(state_dict.to_state_dict(params, network.settings), dict(about))
    return formats.to_torch(state) if kind == "torch" else formats.to_safetensors(state)


# --------------------------------------------------------------------------------------------------- never over others


def _sealed(about: Mapping[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """The metadata as a file, with checksums of the files beside it and of itself."""
    tree = {**about, "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}}
    return (json.dumps({**tree, _SEAL: _seal(tree)}, indent=1) + "\n").encode()


def _seal(tree: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in tree.items() if name != _SEAL}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _listed(path: Path) -> dict[str, str]:
    """Checksums of the files of an earlier export, by name; of none if its metadata is not as it was written."""
    try:
        content = path.with_name(path.name + ".json").read_bytes()
        tree = json.loads(content)
        own = isinstance(tree, dict) and tree.get(_SEAL) == _seal(tree)
        return {**tree["files"], path.name + ".json": hashlib.sha256(content).hexdigest()} if own else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _refuse_foreign(path: Path, content: bytes, *, listed_by: Path) -> None:
    """Refuses to write where something lies that is neither the same nor of the earlier export to `listed_by`."""
    if not os.path.lexists(path):
        return
    try:
        before = None if path.is_symlink() else path.read_bytes()
    except OSError:
        before = None
    if before == content or (
        before is not None and hashlib.sha256(before).hexdigest() == _listed(listed_by).get(path.name)
    ):
        return
    raise UserError(
        f"--output: {path} is no export of {listed_by.name}, or has been changed since; it is not replaced. Move it "
        f"away, or name another file or folder"
    )


# --------------------------------------------------------------------------------------------------------------- check


def _check(kind: Format, path: Path, network: Network, params: Params, about: Mapping[str, Any]) -> str:
    """Reads a file again and compares what it holds with the network; returns what was found, in words.

    Raises:
        UserError: It differs.
    """
    shape = (WINDOWS, *about["window"], about["network"]["channels"])
    windows = streams.host_rng(0, "export").normal(size=shape).astype(np.float32)
    content = path.read_bytes()
    if kind == "jax":
        expected = jax.jit(inference.make_window_predict(network))(params, {}, windows)
        found = np.asarray(program.load(content).call(windows))
        return f"its probabilities {_compared(path, found, np.asarray(expected))}"
    state = formats.from_torch(content) if kind == "torch" else formats.from_safetensors(content)
    difference = state_dict.difference(params, state.tensors, network.settings)
    if difference is None and state.metadata != about:
        difference = "the metadata is not what was written"
    if difference is not None:
        raise UserError(f"{path} does not hold what was written: {difference}; export to another disk")
    equal = f"its {len(state.tensors)} tensors equal the study's parameters bit for bit"
    if kind == "safetensors":
        return equal
    if not formats.can_build(about["network"]):
        return f"{equal}; logits are not compared, since dynamic-network-architectures is not installed"
    found = formats.torch_logits(about["network"], state.tensors, windows)
    expected = jax.jit(lambda params, x: network.apply({"params": params}, x))(params, windows)
    return f"{equal}, and PyTorch's logits {_compared(path, found, np.asarray(expected))}"


def _compared(
    path: Path,
    found: Float[np.ndarray, "windows *patch classes"],
    expected: Float[np.ndarray, "windows *patch classes"],
) -> str:
    largest = float(np.abs(found - expected).max())
    if not largest <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise UserError(
            f"{path} was written, and gives other results than the network: they differ by {largest:.2g} on windows of "
            f"noise. Do not use it; a device that rounds what it multiplies is a possible cause: try JAX_PLATFORMS=cpu"
        )
    return f"on {WINDOWS} windows of noise differ from jaxseg's by at most {largest:.1e}"
