"""How weights start: load tables of the real network, what each named arm takes from its source, mean and variance."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from configs import default
from jaxseg import optim, transfer, trees
from jaxseg.models.unet import UNet
from jaxseg.types import UserError
from tests import training_parts

FIRST = "encoder/level_0/conv_0/kernel"
HEAD = ("head/kernel", "head/bias")


def statuses(table):
    return {row.path: row.status for row in table if row.shape is not None}


def test_other_classes_and_channels_are_initialised_anew():
    start = training_parts.abstract_params(classes=2, channels=2)
    source = training_parts.abstract_params(classes=3, channels=1)
    table = transfer.make_load_table(start, source, transfer.transfer_rules("pretrained"))
    fresh = {FIRST, *HEAD}
    expected = {path: "re-initialised" if path in fresh else "loaded" for path in trees.flatten(start)}
    assert statuses(table) == expected
    rows = {(row.path, row.status): row for row in table}
    first = rows[FIRST, "re-initialised"]
    assert (first.shape, first.source_shape, first.size) == ((3, 3, 2, 2), (3, 3, 1, 2), 36)
    # What lies unused in the source is listed too.
    assert {path for path, status in rows if status == "unused"} == fresh
    assert rows["head/bias", "unused"] == ("head/bias", "unused", None, (3,))
    text = transfer.format_load_table(table)
    assert len(text.splitlines()) == 1 + len(table) + 1 + 3
    assert f"loaded: {trees.count(start) - 36 - 4 - 2} parameters" in text
    assert "re-initialised: 42 parameters" in text
    assert f"unused: {18 + 6 + 3} parameters" in text


def test_channels_are_adapted_when_asked():
    start, source = (
        training_parts.random_params(classes=3, channels=2),
        training_parts.random_params(classes=3, channels=1, seed=1),
    )
    rules = transfer.transfer_rules("pretrained")
    params, table = transfer.transfer_params(start, source, rules, adapt={FIRST})
    assert {path for path, status in statuses(table).items() if status != "loaded"} == {FIRST}
    assert statuses(table)[FIRST] == "adapted"
    assert not [row for row in table if row.status == "unused"]
    assert f"adapted: {3 * 3 * 2 * 2} parameters" in transfer.format_load_table(table)
    given, got = trees.flatten(source)[FIRST], np.asarray(trees.flatten(params)[FIRST])
    np.testing.assert_allclose(got[..., 0, :] + got[..., 1, :], given[..., 0, :], rtol=1e-6)
    np.testing.assert_array_equal(got[..., 0, :], got[..., 1, :])
    transfer.check_load(table, min_loaded=1.0, arm="x")
    # A whole network of the source's on an image, and the adapted one on the image in both channels, agree.
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    apply = UNet(training_parts.MODEL, 3, "native").apply
    np.testing.assert_allclose(
        apply({"params": params}, np.repeat(image, 2, -1)), apply({"params": source}, image), atol=1e-5
    )
    # Three channels to two; kernels that do not read the image are not touched.
    three = training_parts.abstract_params(channels=3)
    assert statuses(transfer.make_load_table(start, three, rules, adapt={FIRST}))[FIRST] == "adapted"
    wider = training_parts.abstract_params(dataclasses.replace(training_parts.MODEL, widths=(2, 4)))
    of_wider = transfer.make_load_table(training_parts.abstract_params(), wider, rules, adapt={FIRST})
    assert "adapted" not in statuses(of_wider).values()
    # Part of the network alone, with the first kernel not asked for.
    rules = transfer.transfer_rules("pretrained:^decoder/")
    assert statuses(transfer.make_load_table(start, source, rules, adapt={FIRST}))[FIRST] == "random"


ENCODER, DECODER, HEADS = r"^encoder/", r"^decoder/", r"^head/"
TAKEN = {
    "scratch": (),
    "transfer": (ENCODER, DECODER, HEADS),
    "frozen_random_encoder": (),
    "frozen_pretrained_encoder": (ENCODER, DECODER, HEADS),
    "transfer_encoder": (ENCODER,),
    "transfer_decoder": (DECODER,),
    "mean_var": (),
    "head_only": (ENCODER, DECODER, HEADS),
    "transfer_head_first": (ENCODER, DECODER, HEADS),
    "transfer_slow_encoder": (ENCODER, DECODER, HEADS),
    "frozen_random_decoder": (),
    "pooled_encoder": (),
    "scratch_no_skip": (),
    "frozen_random_encoder_no_skip": (),
    "scratch_b": (),
    "shuffled_source": (ENCODER, DECODER, HEADS),
    "self_transfer": (ENCODER, DECODER, HEADS),
    "ssl_source": (ENCODER, DECODER, HEADS),
    "ssl_target": (ENCODER, DECODER, HEADS),
    "transfer_nested": (ENCODER, DECODER, HEADS),
    "scratch_slow": (),
    "scratch_fast": (),
    "prior": (),
    "first_1": (r"^encoder/level_0/",),
    "first_2": (r"^encoder/level_[01]/",),
    "first_3": (ENCODER,),
    "scratch_long": (),
}
NAMED = default.named_arms(default.get_config())
MODEL = dataclasses.replace(training_parts.MODEL, widths=(2, 2, 3))
"""Three levels, so that the first two are not all."""


def test_every_named_arm_is_in_the_table():
    assert list(TAKEN) == list(NAMED)


@pytest.mark.parametrize("arm", TAKEN)
def test_what_each_named_arm_takes_from_its_source(arm):
    start, source = training_parts.random_params(MODEL), training_parts.random_params(MODEL, seed=1)
    rules = transfer.transfer_rules(NAMED[arm].init)
    table = transfer.make_load_table(start, source, rules)
    params = jax.jit(transfer.make_start(rules))(start, source, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(start)
    own, given, got = map(trees.flatten, (start, source, params))
    for path, value in got.items():
        if arm == "mean_var":
            assert not np.array_equal(value, own[path])
            assert not np.array_equal(value, given[path])
            continue
        taken = any(re.search(pattern, path) for pattern in TAKEN[arm])
        np.testing.assert_array_equal(value, given[path] if taken else own[path], err_msg=path)
        assert statuses(table)[path] == ("loaded" if taken else "random")


def test_mean_var_has_the_source_s_mean_and_deviation_and_nothing_else():
    shape = (3, 3, 3, 400)
    rng = np.random.default_rng(0)
    source = {"a": {"kernel": rng.normal(3.0, 0.2, shape).astype(np.float32), "bias": np.full(5, 7, np.float32)}}
    start = jax.tree.map(np.zeros_like, source) | {"b": np.ones(2, np.float32)}
    rules = transfer.transfer_rules("mean_var")
    params, table = transfer.transfer_params(start, source, rules, key=jax.random.key(1))
    kernel, wanted = np.asarray(params["a"]["kernel"]), source["a"]["kernel"]
    error = wanted.std() / np.sqrt(kernel.size)
    assert kernel.mean() == pytest.approx(wanted.mean(), abs=4 * error)
    assert kernel.std() == pytest.approx(wanted.std(), abs=4 * error)
    assert abs(np.corrcoef(kernel.ravel(), wanted.ravel())[0, 1]) < 4 / np.sqrt(kernel.size)
    np.testing.assert_array_equal(params["a"]["bias"], 7)  # no spread in the source: none here
    np.testing.assert_array_equal(params["b"], 1)  # the source lacks it
    assert statuses(table) == {"a/kernel": "mean_var", "a/bias": "mean_var", "b": "re-initialised"}
    again = transfer.make_start(rules)(start, source, jax.random.key(1))
    assert training_parts.bits(again) == training_parts.bits(params)
    other = transfer.make_start(rules)(start, source, jax.random.key(2))
    assert not np.array_equal(other["a"]["kernel"], kernel)


def test_running_statistics_come_with_weights_but_not_with_their_moments():
    batch = dataclasses.replace(MODEL, norm="batch")
    start, source = training_parts.random_params(batch), training_parts.random_params(batch, seed=1)
    own, given = trees.flatten(start), trees.flatten(source)
    path = "encoder/level_0/conv_0/running_variance"
    for init, status, expected in (("pretrained:^encoder/", "loaded", given), ("mean_var", "random", own)):
        params, table = transfer.transfer_params(start, source, transfer.transfer_rules(init), key=jax.random.key(0))
        assert statuses(table)[path] == status
        np.testing.assert_array_equal(trees.flatten(params)[path], expected[path])


def test_mean_var_needs_a_key():
    params = training_parts.random_params()
    with pytest.raises(ValueError, match="needs a key"):
        transfer.transfer_params(params, params, transfer.transfer_rules("mean_var"))


def test_a_pattern_that_matches_nothing_is_named():
    params = training_parts.abstract_params()
    with pytest.raises(UserError, match=r"'encoder/levl' decides no parameter.*encoder/level_0, encoder/level_1, head"):
        transfer.make_load_table(params, params, transfer.transfer_rules("pretrained:encoder/levl"))


def test_an_unknown_init():
    with pytest.raises(UserError, match=r"init = 'pretraind'; allowed: 'random', .*'pretrained:PATH_REGEX'"):
        transfer.transfer_rules("pretraind")


def test_a_transfer_that_loads_too_little_says_what_is_missing():
    start = training_parts.abstract_params(classes=2, channels=2)
    source = training_parts.abstract_params(classes=3)
    table = transfer.make_load_table(start, source, transfer.transfer_rules("pretrained"))
    total = trees.count(start)
    share = (total - 42) / total
    transfer.check_load(table, min_loaded=share - 1e-6, arm="transfer")
    with pytest.raises(UserError) as caught:
        transfer.check_load(table, min_loaded=1.0, arm="transfer")
    text = str(caught.value)
    for part in (
        "arm 'transfer'",
        f"{total - 42} of {total} parameters",
        "pretrain.min_loaded = 1 asks for more",
        f"{FIRST} (3, 3, 2, 2) (source: (3, 3, 1, 2))",
        "head/bias (2,) (source: (3,))",
    ):
        assert part in text
    # What was not asked for does not count as missing.
    encoder = transfer.make_load_table(start, source, transfer.transfer_rules("pretrained:^encoder/level_1/"))
    transfer.check_load(encoder, min_loaded=1.0, arm="first")
    scratch = transfer.make_load_table(start, source, transfer.transfer_rules("random"))
    transfer.check_load(scratch, min_loaded=1.0, arm="scratch")


def test_a_tensor_that_the_source_lacks_is_called_absent():
    table = transfer.make_load_table({"a": np.zeros(2)}, {"b": np.zeros(2)}, transfer.transfer_rules("pretrained"))
    with pytest.raises(UserError, match=r"a \(2,\) \(source: absent\)"):
        transfer.check_load(table, min_loaded=0.1, arm="x")


def test_what_is_frozen_though_it_starts_anew_is_named():
    start = training_parts.abstract_params(classes=2, channels=2)
    source = training_parts.abstract_params(classes=3, channels=1)
    rules, encoder = transfer.transfer_rules("pretrained"), optim.freeze_labels(start, "encoder")
    table = transfer.make_load_table(start, source, rules)
    with pytest.warns(UserWarning, match=rf"arm 'frozen' freezes 1 parameter.*such as {FIRST}: they stay"):
        transfer.warn_of_frozen(table, encoder, arm="frozen")
    transfer.warn_of_frozen(table, optim.freeze_labels(start, "decoder"), arm="silent: the head is trained")
    adapted = transfer.make_load_table(start, source, rules, adapt={FIRST})
    transfer.warn_of_frozen(adapted, encoder, arm="silent: the kernel is loaded")
