"""Rules, by name or of a user's own, and what is checked of what they return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxseg import trees
from jaxseg.imports import conversion, readers
from jaxseg.imports.conversion import Converted
from jaxseg.types import UserError
from tests.imports.weight_files import documented_rules, foreign_tensors, write_safetensors


def converted(folder: Path, tensors: dict[str, np.ndarray], change: tuple[str, str] = ("", "")) -> Converted:
    """What the documented rules give, with something in them changed."""
    path = documented_rules(folder)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    weights = readers.read(write_safetensors(folder / "w.safetensors", tensors))
    return conversion.convert(conversion.find_rules(str(path)), weights)


def test_the_documented_rules_take_a_network_over(tmp_path: Path) -> None:
    tensors = foreign_tensors()
    found = converted(
        tmp_path,
        tensors | {"extra": np.ones(2, np.float32)},
        ("    for name", '    del tensors["extra"]\n    for name'),
    )
    assert found.missing == ()
    params = trees.flatten(found.params)
    kernel = params["encoder/level_1/conv_0/kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 1], tensors["down1.conv0.weight"][:, 1, 0, 2])
    np.testing.assert_array_equal(params["head/kernel"], tensors["out.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(params["decoder/level_0/conv_1/running_variance"], tensors["up0.norm1.running_var"])
    assert (found.model.widths, found.model.norm, found.imported.classes) == ((2, 4), "batch", 3)
    assert found.imported.used["head/bias"] == "out.bias"
    assert len(found.imported.ignored) == 6


def test_what_the_file_has_beyond_the_rules_and_what_it_lacks_is_listed(tmp_path: Path) -> None:
    tensors = {name: array for name, array in foreign_tensors().items() if not name.startswith("up0.norm1")}
    skips = (
        "    for name, array in tensors.items():\n",
        "    for name, array in tensors.items():\n        if name == 'more': continue\n",
    )
    found = converted(tmp_path, tensors | {"more": np.ones(2, np.float32)}, skips)
    assert found.unused == ("more",)
    assert {path.rpartition("/")[0] for path in found.missing} == {"decoder/level_0/conv_1"}
    assert len(found.missing) == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (('"norm": "batch"', '"norm": "bach"'), r"config\.model\.norm = 'bach'; allowed: "),
        (('"norm": "batch"', '"nrom": "batch"'), r"unknown field config\.model\.nrom; did you mean 'norm'"),
        (('"norm": "batch"', '"norm": "none"'), r"params: .* is no parameter of the network that `model` describes"),
        (('"widths": widths', '"widths": (2, 8)'), r"has shape .*, and the network that `model` describes "),
        (("channels=tensors", "channels=0 * tensors"), r"channels = 0; allowed: a number from 1"),
        (('"zscore"', '"z"'), r"normalization = 'z'; allowed: None, 'zscore'"),
        (("used=used", 'used=used | {"a": "b"}'), r"used must name a tensor for every path of params .* differs in a$"),
        (("ignored=tuple(ignored)", 'ignored=(("b", "c"),)'), r"used or ignored names 'b', which the file does not"),
        (("params=params", "params={}"), r"params holds no arrays by path"),
        (("params=params", "params={k: v * np.nan for k, v in params.items()}"), r"holds values that are not finite"),
        (("params=params", 'params=params | {"head": {"bias": params["head/bias"]}}'), r"two arrays for one path"),
        (
            ("params=params", "params={k: 1e300 + np.float64(v) for k, v in params.items()}"),
            r"not finite, or too large for float32",
        ),
        (
            ("params=params", "params={k: v - 9 if 'variance' in k else v for k, v in params.items()}"),
            r"running_variance holds values below 0, which no variance is",
        ),
        (("used=used", "used=list(used)"), r"used is no dict from paths of params to names of tensors"),
        (("used=used", "used={k: [v] for k, v in used.items()}"), r"used is no dict from paths"),
        (("ignored=tuple(ignored)", "ignored=dict(ignored)"), r"ignored is no tuple of pairs"),
        (("ignored=tuple(ignored)", 'ignored=("b",)'), r"ignored is no tuple of pairs"),
        (('"zscore"', "np.ones(3)"), r"normalization = array.*; allowed: None, 'zscore'"),
        (('tensors["out.bias"]', 'tensors["out.bais"]'), r"no tensor 'out\.bais'; did you mean 'out\.bias'\?"),
        (("    widths = ", "    1 / 0\n    widths = "), r"rules\.py, line \d+: ZeroDivisionError: division by zero"),
        (("    return Imported(", "    return dict("), r"`convert` returns a dict and not an Imported"),
    ],
)
def test_a_mistake_in_the_rules_is_named(change: tuple[str, str], text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=text):
        converted(tmp_path, foreign_tensors(), change)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("def convert(:\n", r"rules\.py, line 1: SyntaxError"),
        ("import nothing_of_this_name\n", r"rules\.py, line 1: ModuleNotFoundError"),
        ("convert = 3\n", r"defines no function `convert\(tensors, \*, metadata\)`"),
    ],
)
def test_a_file_that_is_no_rules(content: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "rules.py").write_text(content)
    with pytest.raises(UserError, match=text):
        conversion.find_rules(str(tmp_path / "rules.py"))


def test_rules_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--rules=unett: there are no such rules.* a file of your own ends in \.py"):
        conversion.find_rules("unett")
    with pytest.raises(UserError, match=r"rules\.py cannot be read: No such file"):
        conversion.find_rules(str(tmp_path / "rules.py"))


def test_rules_by_name_are_the_modules_of_their_package() -> None:
    for name in conversion.named_rules():
        assert callable(conversion.find_rules(name).convert)
