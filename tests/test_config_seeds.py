"""Seeds and sources whose settings would say something else than they do, in a study that is still to grow."""

import re

import pytest

from configs import claims, default
from jaxseg import settings
from jaxseg.types import UserError
from tests.tiny_study import changed, put, tiny_config


@pytest.mark.parametrize("lr_seed", [9, 1009], ids=["of the study", "of a placebo"])
def test_seeds_of_trials_are_none_that_a_later_look_needs(lr_seed):
    """Once the second look is reached, nothing can be changed."""
    made = claims.get_config()
    assert (made.num_seeds, made.looks) == (8, (8, 16))
    made.optim.lr_seeds = (lr_seed,)
    with pytest.raises(UserError, match=rf"optim.lr_seeds = \({lr_seed},\); allowed: seeds that no run uses, up"):
        settings.parse(made)
    made.looks = (8,)
    settings.parse(made)


@pytest.mark.parametrize(
    ("offset", "looks", "named"),
    [
        (1, (), "arm(s) scratch, such as 1000; these too have seed(s) 1"),
        (2, (2, 4), "up to the look at 4"),
        (4, (2, 8), "up to the look at 8"),
    ],
)
def test_the_seeds_of_a_placebo_are_others_at_every_look(offset, looks, named):
    made = changed(looks=looks)
    made.arms = default.pick_arms("scratch", "prior", "scratch_b")
    made.arms.scratch_b.seed_offset = offset
    with pytest.raises(UserError, match=f"config.arms.scratch_b.seed_offset = {offset}; allowed: 0, or") as caught:
        settings.parse(made)
    assert named in str(caught.value)
    made.looks, made.arms.scratch_b.seed_offset = (2, 4), 4
    settings.parse(made)


def test_seeds_may_overlap_with_those_of_arms_that_have_others_themselves():
    made = tiny_config()
    made.arms = default.pick_arms("scratch_b", "prior")  # nothing stands beside them to be confused with
    made.arms.scratch_b.seed_offset = 1
    settings.parse(made)
    made.arms = default.pick_arms("scratch", "prior")
    made.arms.prior.seed_offset = 1  # has no start and no batches
    settings.parse(made)


def target_as_source(**fields):
    made = changed(source__data="target", **fields)
    made.source.patch = default.task().patch
    return made


def test_a_source_that_is_the_target_has_no_settings_that_come_to_nothing():
    made = target_as_source(source__noise=0.5, source__augment__gamma=0.3)
    message = (
        "config.source.noise = 0.5, config.source.augment.gamma = 0.3; allowed: the default or the value of the target"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        settings.parse(made)
    made.target.noise = made.target.augment.gamma = 0.5
    made.source.augment.gamma = 0.5
    assert {arm.source.noise for arm in settings.parse(made).arms} == {0.5}
    # An arm's own settings are honoured, and an arm with data of its own takes those of the study's source.
    made = target_as_source()
    put(made, "arms.transfer.source", {"noise": 0.5})
    assert [arm.source.noise for arm in settings.parse(made).arms] == [0.0, 0.5, 0.0]
    made.source.noise = 0.25
    put(made, "arms.transfer.source", {"data": "synthetic:tubes", "patch": (8, 8)})
    assert settings.parse(made).arms[1].source.noise == 0.25
