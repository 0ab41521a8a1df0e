"""Segments new images with networks of a finished study, or scores label maps against references.

python -m launch.predict --workdir=runs/quickstart --arm=transfer --input=DIR|FILE --output=DIR [--seeds=0,1]
    [--train_cases=8 --fold=0] [--ensemble] [--uncertainty]
python -m launch.predict --score=DIR (--workdir=runs/quickstart | --references=DIR) [--output=FILE.csv]

The first writes NIfTI label maps on each input's own grid, with the label values of the target's dataset.json:
OUTPUT/seed_<id>/<case>.nii.gz, or with --ensemble one map from the mean of the seeds' probabilities,
OUTPUT/<case>.nii.gz; with --uncertainty also the voxel entropy over seeds, OUTPUT/entropy/<case>.nii.gz.

The second scores DIR/<case>.nii.gz, or DIR/seed_<id>/<case>.nii.gz, whoever made them: against the test cases of a
study, by its settings, or against a folder (Decathlon or nnU-Net layout, or nothing but label maps). Rows as in
cases.csv go to --output (DIR/scores.csv), means to the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import jaxseg
from jaxseg import data
from jaxseg.metrics.cases import UNITS
from jaxseg.metrics.surface import HD_DEFINITIONS, SURFACE_EMPTY
from jaxseg.study import elsewhere, files, formats
from jaxseg.study.api import Arm
from jaxseg.types import UserError
from launch import cli

_WORKDIR = cli.workdir_flag()
_ARM = flags.DEFINE_string("arm", None, "Name of an arm.")
_TRAIN_CASES = flags.DEFINE_integer("train_cases", None, "Train size, where the arm has several; 0 means all.")
_FOLD = flags.DEFINE_integer("fold", None, "Fold, where there are several.")
_SEEDS = flags.DEFINE_list("seeds", [], "Ids of seeds; all when left out.")
_INPUT = flags.DEFINE_string("input", None, "An image, or a folder of images (.nii, .nii.gz; channels _0000, _0001).")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the label maps, or file for the scores; created when new.")
_ENSEMBLE = flags.DEFINE_bool("ensemble", False, "One label map from the mean probabilities of the seeds.")
_UNCERTAINTY = flags.DEFINE_bool("uncertainty", False, "Write the voxel entropy (nats) of the seeds' mean too.")

_SCORE = flags.DEFINE_string("score", None, "Score the label maps of this folder instead of predicting.")
_REFERENCES = flags.DEFINE_string("references", None, "Score against this folder, without a study.")
_UNIT = flags.DEFINE_enum("unit", "mm", UNITS, "Of distances, with --references.")
_HD_DEFINITION = flags.DEFINE_enum("hd_definition", "pooled", HD_DEFINITIONS, "Of HD95, with --references.")
_SURFACE_EMPTY = flags.DEFINE_enum(
    "surface_empty", "diagonal", SURFACE_EMPTY, "Distance of a missed label, with --references."
)
_TOLERANCE_MM = flags.DEFINE_float("tolerance_mm", 0.0, "Of NSD, with --references; 0: not computed.")


def main() -> None:
    """Predicts, or scores with --score."""
    if _SCORE.value is not None:
        score(Path(_SCORE.value))
    else:
        study = jaxseg.load(cli.require(_WORKDIR.value, "workdir", "runs/quickstart"))
        name = cli.require(_ARM.value, "arm", study.arms[0])
        predict(study.arm(name, train_cases=_TRAIN_CASES.value, fold=_FOLD.value))


def predict(arm: Arm) -> None:
    """Predicts every image of the input."""
    try:
        seeds = tuple(int(seed) for seed in _SEEDS.value) or arm.seeds
    except ValueError:
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds are numbers, of {arm.seeds}") from None
    source = Path(cli.require(_INPUT.value, "input", "images/"))
    output = Path(cli.require(_OUTPUT.value, "output", "predictions/"))
    cases = data.list_images(source, arm.target["channels"])
    _warn(data.unread(source), "files or folders of the input are not read")
    progress = cli.make_progress()("predict")
    for done, case in enumerate(cases, start=1):
        made, geometry = arm.segment(list(case.images), seeds)
        if _ENSEMBLE.value:
            maps = {output / f"{case.name}.nii.gz": made.ensemble}
        else:
            maps = {
                output / f"seed_{seed}" / f"{case.name}.nii.gz": labels
                for seed, labels in zip(seeds, made.labels, strict=True)
            }
        for path, labels in maps.items():
            data.write_prediction(labels, geometry, path, label_values=arm.label_values)
        if _UNCERTAINTY.value:
            data.write_map(made.entropy, geometry, output / "entropy" / f"{case.name}.nii.gz")
        progress("predicting", done, len(cases), case.name)
    print(f"label maps: {output.absolute()}")


def score(folder: Path) -> None:
    """Scores the label maps of a folder."""
    workdir, reference = _WORKDIR.value, _REFERENCES.value
    if (workdir is None) == (reference is None):
        raise UserError("--score needs either --workdir (a study, for its test cases) or --references (a folder)")
    if not folder.is_dir():
        raise UserError(f"--score={folder}: no such folder; give one with <case>.nii.gz files")
    confidence, wanted = 0.95, None
    if reference is None:
        study = jaxseg.load(workdir)
        confidence = study.settings.analysis.confidence
        truth, wanted, options = study.references(fold=_FOLD.value)
    else:
        truth = data.open_references(reference, ndim=3, cache=folder)
        options = {
            **{"unit": _UNIT.value, "hd_definition": _HD_DEFINITION.value, "surface_empty": _SURFACE_EMPTY.value},
            "tolerance_mm": _TOLERANCE_MM.value or None,
        }
    scored = elsewhere.score_folder(
        folder, truth, wanted=wanted, options=options, progress=cli.make_progress()("score")
    )
    output = Path(_OUTPUT.value or folder / "scores.csv")
    files.write_table(output, scored.cases)
    print(formats.to_text(elsewhere.summarise(scored.cases, confidence=confidence)))
    _warn(scored.missing, "cases have no prediction and are in no mean")
    _warn(scored.unmatched, "files go with no reference and were not scored")
    print(f"scores: {output.absolute()}")


def _warn(names: Sequence[str], what: str) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        print(f"warning: {len(names)} {what}: {', '.join(names[:5])}{more}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
