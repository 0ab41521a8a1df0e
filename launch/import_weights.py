"""Takes over a network that someone else trained, for studies that start from its weights.

python -m launch.import_weights --input=FILE --list [--key=ENTRY] [--prefix=NAME.]
python -m launch.import_weights --input=FILE --rules=nnunet|torch_unet|RULES.py --output=DIR
    [--trained_on='T2 images of 128 mice'] [--licence=MIT] [--origin=URL]

FILE is a checkpoint of PyTorch (.pth, .pt, .tar) or a safetensors file; nothing in it is run. The first shows the
names, shapes and types of its tensors. The second writes DIR, which a study takes as config.pretrain.from_workdir, and
prints the settings of the network that fits. docs/import.md shows rules of your own.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from absl import flags

from jaxseg.imports import conversion, readers
from jaxseg.imports.conversion import Converted, Rules
from jaxseg.imports.kinds import Weights
from jaxseg.study import source_folder
from jaxseg.study.record import Checkpoint
from jaxseg.study.source_folder import ImportRecord, Names
from jaxseg.types import UserError
from launch import cli, terminal

_INPUT = cli.path_flag("input", "File of weights.")
_OUTPUT = cli.path_flag("output", "Folder for the import; created new.")
_RULES = flags.DEFINE_string("rules", None, "Rules by name, or a file of your own (.py).")
_LIST = flags.DEFINE_bool("list", False, "Show names, shapes and types of the tensors, and write nothing.")
_KEY = flags.DEFINE_string("key", "", "Entry of a checkpoint that holds the tensors, where several may.")
_PREFIX = flags.DEFINE_string("prefix", "", "Read only tensors whose names begin so, without that beginning.")
_TRAINED_ON = flags.DEFINE_string("trained_on", "", "Images that it was trained on, in words; every page repeats them.")
_LONGEST = 200
"""Characters of --trained_on: it stands beside every number."""
_LICENCE = flags.DEFINE_string("licence", "", "Licence of the weights.")
_ORIGIN = flags.DEFINE_string("origin", "", "Where they come from: an address, a publication.")


def main() -> None:
    """Lists the tensors of a file, or imports them."""
    path = Path(cli.require(_INPUT.value, "input", "weights.pth"))
    if _LIST.value:
        weights = readers.read(path, key=_KEY.value, prefix=_PREFIX.value)
        _say_notes(weights)
        terminal.say(_listing(weights))
        return
    rules = conversion.find_rules(cli.require(_RULES.value, "rules", "nnunet"))
    output = Path(cli.require(_OUTPUT.value, "output", "imports/NAME"))
    source_folder.check_new(output)
    if len(_TRAINED_ON.value) > _LONGEST:
        raise UserError(
            f"--trained_on has {len(_TRAINED_ON.value)} characters; pages repeat it often, so give {_LONGEST}"
        )
    weights = readers.read(path, key=_KEY.value, prefix=_PREFIX.value)
    _say_notes(weights)
    converted = conversion.convert(rules, weights)
    record = _record(path, rules, weights, converted)
    source_folder.write(output, record, converted.model, converted.params)
    terminal.say(_summary(converted))
    if not _TRAINED_ON.value.strip():
        terminal.say(
            "warning: what it was trained on is unknown (--trained_on), so that it may have seen the cases that a "
            "study tests on; pages of studies that start from it will say so",
            error=True,
        )
    terminal.say(f"import: {output.absolute()}\nA study starts from it with these options:")
    terminal.say(" \\\n".join(f"    {option}" for option in source_folder.overrides(output, record, converted.model)))


def _record(path: Path, rules: Rules, weights: Weights, converted: Converted) -> ImportRecord:
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    imported = converted.imported
    told = (" ".join(flag.value.split()) for flag in (_ORIGIN, _LICENCE, _TRAINED_ON))
    return ImportRecord(
        checkpoint=Checkpoint(path.name, digest, *told),
        rules=rules.name,
        rules_sha256=rules.sha256,
        channels=imported.channels,
        classes=imported.classes,
        normalization=imported.normalization,
        outputs=imported.outputs,
        names=Names(
            used=dict(imported.used),
            ignored=dict(imported.ignored),
            unused=converted.unused,
            missing=converted.missing,
        ),
        notes=weights.notes,
    )


def _say_notes(weights: Weights) -> None:
    for note in weights.notes:
        terminal.say(note)


def _listing(weights: Weights) -> str:
    """One line a tensor, then the totals."""
    rows = [(name, str(tuple(array.shape)), weights.dtypes[name]) for name, array in weights.tensors.items()]
    numbers = sum(array.size for array in weights.tensors.values())
    return "\n".join([*_columns([("tensor", "shape", "type"), *rows]), "", f"{len(rows)} tensors, {numbers:,} numbers"])


def _summary(converted: Converted) -> str:
    """What became of every parameter and every tensor."""
    imported = converted.imported
    shapes = conversion.network_shapes(converted.model, channels=imported.channels, classes=imported.classes)
    rows = [(path, str(shape), imported.used.get(path, "- (starts anew)")) for path, shape in shapes.items()]
    lines = _columns([("parameter", "shape", "from"), *rows])
    reasons: dict[str, list[str]] = {}
    for name, why in imported.ignored:
        reasons.setdefault(why, []).append(name)
    lines += [f"ignored, {why}: {', '.join(names)}" for why, names in reasons.items()]
    if converted.unused:
        lines.append(f"unused, as the rules say nothing of them: {', '.join(converted.unused)}")
    total = sum(math.prod(shape) for shape in shapes.values())
    taken = total - sum(math.prod(shapes[path]) for path in converted.missing)
    whose = f"{taken:,} of {total:,} numbers of the network's parameters are the file's"
    return "\n".join([*lines, "", f"{whose}; {imported.channels} channel(s), {imported.classes} {imported.outputs}"])


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}".rstrip() for first, second, third in rows]


if __name__ == "__main__":
    cli.run(main)
