"""Writes a network of a finished study for use without jaxseg: in PyTorch, or as a program of JAX.

python -m launch.export --workdir=runs/quickstart --arm=transfer --seed=0 --format=safetensors --output=exported/
    [--train_cases=8 --fold=0] [--step=best]

--output is a folder, or a file in it that ends as the format does (.safetensors, .pth, .jax). Written are

    safetensors   the state dict, for the networks that are in PyTorch too; read without PyTorch (extra: import)
    torch         the same as a dict of `state_dict` and `metadata` for torch.load (extra: import)
    jax           the prediction of windows with the weights in it, for CPU, CUDA and TPU (extra: export)

with the metadata as JSON beside it: the network, labels, how images are prepared, and which run of which study it is.
The first two come with network.py, the networks in PyTorch. It is the network that the study scores, late averages
included. What was written is read again and compared. Only earlier exports are replaced, never another file.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import jax
from absl import flags

from jaxseg.exports.formats import FORMATS, Format
from jaxseg.study import export
from jaxseg.types import UserError
from launch import cli, selection, terminal

_SEED = flags.DEFINE_integer("seed", None, "Id of the seed whose network is exported.")
_STEP = flags.DEFINE_string(
    "step", None, "A saved step, or best where train.keep_best kept it, instead of the network that is scored."
)
_FORMAT = flags.DEFINE_enum("format", "safetensors", FORMATS, "Of the file.")
_OUTPUT = cli.path_flag("output", "Folder for the export, or file in it; created when new.")


def main() -> None:
    """Exports, and says what the check found."""
    study, arm = selection.chosen()
    seed = cli.require(_SEED.value, "seed", str(arm.seeds[0]))
    output = Path(cli.require(_OUTPUT.value, "output", "exported/"))
    # A program names the source files of its operations; their folders are of no use elsewhere.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    kind = cast(Format, _FORMAT.value)
    done = export.export_network(study, arm, seed=seed, kind=kind, output=output, step=_step())
    for path in done.files:
        terminal.say(str(path.absolute()))
    terminal.say(f"read back: {done.check}")


def _step() -> int | str | None:
    text = _STEP.value
    if text is None or text == "best":
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--step={text}: a step is a number, or best") from None


if __name__ == "__main__":
    cli.run(main)
