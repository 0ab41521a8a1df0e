"""Segments new images with networks of a finished study, or scores label maps against references.

python -m launch.predict --workdir=runs/quickstart --arm=transfer --input=DIR|FILE --output=DIR [--seeds=0,1]
    [--train_cases=8 --fold=0] [--ensemble] [--uncertainty] [--probabilities]
python -m launch.predict --score=DIR (--workdir=runs/quickstart | --references=DIR) [--output=FILE.csv]

The first writes label maps in the format and on the grid of each input, with the label values of the target's
dataset.json. They are named as here for NIfTI: OUTPUT/seed_<id>/<case>.nii.gz, or with --ensemble one map from the mean
of the seeds' probabilities, OUTPUT/<case>.nii.gz; with --uncertainty also the voxel entropy over seeds,
OUTPUT/entropy/<case>.nii.gz; with --probabilities that mean itself, a file for each class,
OUTPUT/probabilities/<index>_<label>/<case>.nii.gz. Only earlier predictions are replaced, never another file. Images
that cannot be predicted are named at the end, after the others are written; the exit status is then 2.

The second scores DIR/<case>.nii.gz, or DIR/seed_<id>/<case>.nii.gz, whoever made them: against the test cases of a
study, by its settings, or against a folder (Decathlon or nnU-Net layout, or nothing but label maps). Rows as in
cases.csv go to --output (DIR/scores.csv), means to the terminal.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jax.errors import JaxRuntimeError

import jaxseg
from jaxseg import data
from jaxseg.buckets.reading import all_paths
from jaxseg.data.cases import CaseFiles
from jaxseg.metrics.cases import UNITS
from jaxseg.metrics.surface import HD_DEFINITIONS, SURFACE_EMPTY
from jaxseg.study import outputs
from jaxseg.study.api import Arm
from jaxseg.study.score import formats
from jaxseg.study.score.folder import score_folder, summarise
from jaxseg.study.train.stage import is_out_of_memory
from jaxseg.types import UserError
from launch import cli, places, selection, terminal

SCORES_BEGIN = "arm,seed,train_cases,fold,case,group,"
"""The beginning of a table of scores, by which an earlier one is recognised."""

_SEEDS = flags.DEFINE_list("seeds", [], "Ids of seeds; all when left out.")
_INPUT = cli.path_flag(
    "input", "An image, or a folder of images (NIfTI, NRRD, MetaImage, TIFF, PNG; channels _0000, _0001)."
)
_OUTPUT = cli.path_flag("output", "Folder for the label maps, or file for the scores; created when new.")
_ALLOW_DIVERGED = flags.DEFINE_bool("allow_diverged", False, "Also predict with networks whose training diverged.")
_ENSEMBLE = flags.DEFINE_bool("ensemble", False, "One label map from the mean probabilities of the seeds.")
_UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Write the voxel entropy (nats) of the seeds' mean too.")
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write the mean probabilities of the seeds, class by class.")

_SCORE = cli.path_flag("score", "Score the label maps of this folder instead of predicting.")
_REFERENCES = cli.path_flag("references", "Score against this folder, without a study.")
_UNIT = flags.DEFINE_enum("unit", "mm", UNITS, "Of distances, with --references.")
_HD_DEFINITION = flags.DEFINE_enum("hd_definition", "pooled", HD_DEFINITIONS, "Of HD95, with --references.")
_SURFACE_EMPTY = flags.DEFINE_enum(
    "surface_empty", "diagonal", SURFACE_EMPTY, "Distance of a missed label, with --references."
)
_TOLERANCE_MM = flags.DEFINE_float("tolerance_mm", 0.0, "Of NSD, with --references; 0: not computed.")

OF_PREDICTIONS = (
    *("arm", "seeds", "train_cases", "input", "allow_diverged"),
    *("ensemble", "uncertainty", "probabilities"),
)
"""Flags that choose networks, images and what is written of them."""
OF_REFERENCES = ("unit", "hd_definition", "surface_empty", "tolerance_mm")
"""Flags of scores against a folder; a study has settings for them."""


def main() -> None:
    """Predicts, or scores with --score."""
    if _SCORE.value is not None:
        cli.refuse(OF_PREDICTIONS, "with --score no network predicts, and all label maps of its folder are scored")
        score(Path(_SCORE.value))
    else:
        cli.refuse(("references", *OF_REFERENCES), "they are of --score")
        predict(selection.chosen()[1])


def predict(arm: Arm) -> None:
    """Predicts every image of the input that can be predicted, and names the others at the end.

    Raises:
        UserError: A mistake that concerns all images, before anything is written; or, at the end, images that were not
            predicted.
    """
    seeds = _seeds(arm)
    _check_sound(arm, seeds)
    source = Path(cli.require(_INPUT.value, "input", "images/"))
    output = Path(cli.require(_OUTPUT.value, "output", "predictions/"))
    cases, failed = _usable(arm, source)
    planned = outputs.plan(
        cases,
        output,
        seeds=seeds,
        ensemble=_ENSEMBLE.value,
        uncertainty=_UNCERTAINTY.value,
        probabilities=arm.target.output_names if _PROBABILITIES.value else (),
    )
    outputs.check(planned, cases, arm.workdir)
    arm.keep(seeds)  # damaged parameters are no fault of an image
    outputs.make_folder(output)
    progress = cli.make_progress()("predict")
    written = 0
    doubtful: dict[str, list[str]] = {}
    for done, case in enumerate(cases, start=1):
        reason, doubts = _predict_one(arm, case, seeds, planned[case.name])
        if reason is None:
            written += 1
        else:
            failed[case.name] = reason
        for text in doubts:
            doubtful.setdefault(text, []).append(case.name)
        progress("predicting", done, len(cases), case.name)
    for text, names in doubtful.items():
        terminal.say(f"warning: {_shown(names)}: {text}", error=True)
    terminal.say(f"label maps of {written} image(s): {output.absolute()}")
    if failed:
        raise UserError(_told(failed, written))


def _seeds(arm: Arm) -> tuple[int, ...]:
    try:
        seeds = tuple(int(seed) for seed in _SEEDS.value) or arm.seeds
    except ValueError:
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds are numbers, of {arm.seeds}") from None
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={','.join(_SEEDS.value)} names a seed twice")
    return seeds


def _check_sound(arm: Arm, seeds: Sequence[int]) -> None:
    """Refuses networks whose training diverged, whose weights are those of some moment before.

    Raises:
        UserError: There are some among the seeds.
    """
    steps = {seed: arm.runs[seed].diverged_at for seed in seeds if seed in arm.runs}
    lost = {seed: step for seed, step in steps.items() if step is not None}
    if lost and not _ALLOW_DIVERGED.value:
        named = ", ".join(f"seed {seed} at step {step}" for seed, step in lost.items())
        left = ",".join(str(seed) for seed in seeds if seed not in lost)
        raise UserError(
            f"runs of arm {arm.settings.name!r} diverged: {named}. What is saved of them is no trained network; give "
            f"{f'--seeds={left}' if left else 'another --arm'}, or --allow_diverged for the last weights that were "
            f"numbers"
        )


def _usable(arm: Arm, source: Path) -> tuple[list[CaseFiles], dict[str, str]]:
    """The images that can be predicted as far as their headers tell, and why the others cannot.

    Raises:
        UserError: None can.
    """
    channels = arm.target.channels
    found = data.find_images(source, channels)
    _warn(data.unread(source), "files or folders of the input are not read")
    failed, cases = dict(found.refused), []
    for case in found.cases:
        reason = data.image_problem(case.images, task=arm.study.target, ndim=arm.settings.model.ndim, channels=channels)
        if reason is None:
            cases.append(case)
        else:
            failed[case.name] = reason
    if not cases:
        raise UserError(_told(failed, 0))
    if failed:
        _warn(list(failed), "images cannot be used; the others are predicted first")
    return cases, failed


def _predict_one(
    arm: Arm, case: CaseFiles, seeds: Sequence[int], files: Mapping[str, Path]
) -> tuple[str | None, tuple[str, ...]]:
    """Predicts an image and writes what is wanted of it.

    Returns:
        Why it could not be predicted, None where it was; and what is doubtful about it.

    Raises:
        UserError: Nothing can be written any more.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", data.ImageWarning)  # the geometry has them too
            made, geometry = arm.segment(list(case.images), seeds, probabilities=_PROBABILITIES.value)
    except UserError as error:
        return str(error), ()
    except OSError as error:  # no permission for this file, or a disk that does not give it
        return f"{error.filename or case.images[0]} cannot be read: {error.strerror}", ()
    except (MemoryError, JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        many = f"with {len(seeds)} network(s) at once; give fewer --seeds, or cut or resample it"
        return f"it does not fit in memory {many}", ()
    maps = {"ensemble": made.ensemble} | {
        f"seed_{seed}": labels for seed, labels in zip(seeds, made.labels, strict=True)
    }
    classes = () if made.mean is None else np.moveaxis(made.mean, -1, 0)
    numbers = {"entropy": made.entropy} | {outputs.probability(index): one for index, one in enumerate(classes)}
    try:
        for kind, path in files.items():
            if kind in numbers:
                data.write_map(numbers[kind], geometry, path)
            else:
                data.write_prediction(maps[kind], geometry, path, label_values=arm.label_values)
    except OSError as error:
        raise UserError(
            f"the label maps of {case.name} cannot be written ({error.strerror}: {error.filename}); those before it "
            f"are whole, and the same command goes on once there is room"
        ) from None
    return None, geometry.warnings


def _told(failed: Mapping[str, str], written: int) -> str:
    total = len(failed) + written
    lines = [f"{name}: {reason}" for name, reason in failed.items()]
    return f"{len(failed)} of {total} image(s) were not predicted, {written} were:\n  " + "\n  ".join(lines)


def score(folder: Path) -> None:
    """Scores the label maps of a folder, prints the means and writes every score.

    Raises:
        UserError: A mistake that concerns all of them, before anything is scored; or, at the end, label maps that could
            not be scored, or a table that could not be written.
    """
    workdir, reference = selection.workdir(), _REFERENCES.value
    if (workdir is None) == (reference is None):
        raise UserError("--score needs either --workdir (a study, for its test cases) or --references (a folder)")
    if reference is None:
        cli.refuse(OF_REFERENCES, "scores are computed by the study's settings")
    else:
        cli.refuse(("fold",), "with --references there are no folds")
    if not folder.is_dir():
        raise UserError(f"--score={folder}: no such folder; give one with label maps that are named as the cases")
    output = Path(_OUTPUT.value or folder / "scores.csv")
    outputs.check_table(output, SCORES_BEGIN)
    confidence, wanted = 0.95, None
    if reference is None:
        study = jaxseg.load(places.reading(workdir, wanted=all_paths))
        confidence = study.settings.analysis.confidence
        truth, wanted, options = study.references(fold=selection.fold())
    else:
        truth = data.open_references(reference, ndim=3, cache=folder)
        options = {
            **{"unit": _UNIT.value, "hd_definition": _HD_DEFINITION.value, "surface_empty": _SURFACE_EMPTY.value},
            "tolerance_mm": _TOLERANCE_MM.value or None,
        }
    scored = score_folder(folder, truth, wanted=wanted, options=options, progress=cli.make_progress()("score"))
    # The terminal first: whatever becomes of the file, the means are seen.
    terminal.say(formats.to_text(summarise(scored.cases, confidence=confidence)))
    _warn(scored.missing, "cases have no prediction and are in no mean")
    _warn(scored.unreferenced, "test cases have no reference and are in no mean")
    _warn(scored.unmatched, "files go with no reference and were not scored")
    outputs.write_table(output, scored.cases)
    terminal.say(f"scores: {output.absolute()}")
    if scored.failed:
        lines = "\n  ".join(scored.failed)
        raise UserError(f"{len(scored.failed)} label map(s) could not be scored and are in no mean:\n  {lines}")


def _warn(names: Sequence[str], what: str) -> None:
    if names:
        terminal.say(f"warning: {len(names)} {what}: {_shown(names)}", error=True)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


if __name__ == "__main__":
    cli.run(main)
