"""Segments new images with networks of a finished study.

python -m launch.predict --workdir=runs/quickstart --arm=transfer --input=DIR|FILE --output=DIR [--seeds=0,1]
    [--train_cases=8 --fold=0] [--ensemble]

Writes NIfTI label maps on each input's own grid: OUTPUT/seed_<id>/<case>.nii.gz, or with --ensemble one map from the
mean of the seeds' probabilities, OUTPUT/<case>.nii.gz.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

import jaxseg
from jaxseg import data
from jaxseg.types import UserError
from launch import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished study.")
_ARM = flags.DEFINE_string("arm", None, "Name of an arm.")
_TRAIN_CASES = flags.DEFINE_integer("train_cases", None, "Train size, where the arm has several; 0 means all.")
_FOLD = flags.DEFINE_integer("fold", None, "Fold, where the arm has several.")
_SEEDS = flags.DEFINE_list("seeds", [], "Ids of seeds; all when left out.")
_INPUT = flags.DEFINE_string("input", None, "An image, or a folder of images (.nii, .nii.gz; channels _0000, _0001).")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the label maps; created when new.")
_ENSEMBLE = flags.DEFINE_bool("ensemble", False, "One label map from the mean probabilities of the seeds.")


def main() -> None:
    """Predicts every image of the input."""
    study = jaxseg.load(cli.require(_WORKDIR.value, "workdir", "runs/quickstart"))
    arm = study.arm(cli.require(_ARM.value, "arm", study.arms[0]), train_cases=_TRAIN_CASES.value, fold=_FOLD.value)
    try:
        seeds = tuple(int(seed) for seed in _SEEDS.value) or arm.seeds
    except ValueError:
        raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds are numbers, of {arm.seeds}") from None
    source = Path(cli.require(_INPUT.value, "input", "images/"))
    output = Path(cli.require(_OUTPUT.value, "output", "predictions/"))
    cases = data.list_images(source, arm.target["channels"])
    progress = cli.make_progress()("predict")
    for done, case in enumerate(cases, start=1):
        array, geometry = arm.read(list(case.images))
        probabilities = arm.probabilities(array, seeds)
        if _ENSEMBLE.value:
            data.write_prediction(probabilities.mean(0), geometry, output / f"{case.name}.nii.gz")
        else:
            for seed, one in zip(seeds, probabilities, strict=True):
                data.write_prediction(one, geometry, output / f"seed_{seed}" / f"{case.name}.nii.gz")
        progress("predicting", done, len(cases), case.name)
    print(f"label maps: {output.absolute()}")


if __name__ == "__main__":
    cli.run(main)
