"""No group is cut, nothing leaks, folds and subsets nest, and the seed alone decides."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseg import data
from jaxseg.data import PreparedTask, PrepareReport
from jaxseg.data.cases import CaseRecord
from jaxseg.types import UserError


def prepared_with(groups, splits=None):
    """A task whose cases have these groups; it has no store."""
    records = tuple(
        CaseRecord(
            name=f"case_{index:03d}",
            group=group,
            shape=(8, 8),
            spacing_mm=(1.0, 1.0),
            own_shape=(8, 8),
            own_spacing_mm=(1.0, 1.0),
            voxels_per_label=(60, 4),
            warnings=(),
            patient=group,
            published=True,
        )
        for index, group in enumerate(groups)
    )
    return PreparedTask(
        name="set",
        directory=Path("unused"),
        cases=records,
        labels=("a",),
        label_values=(1,),
        channels=1,
        ndim=2,
        unit="mm",
        modality=("MRI",),
        normalization=("zscore",),
        spacing_mm=None,
        report=PrepareReport((), ()),
        splits=splits,
        ignore_index=None,
    )


def split(prepared, *, val_cases=2, test_cases=0, folds=1, fold=0, seed=0, **more):
    return data.split_cases(
        prepared, val_cases=val_cases, test_cases=test_cases, folds=folds, fold=fold, seed=seed, **more
    )


def groups_of(prepared, names):
    return {prepared.record(name).group for name in names}


many_groups = st.lists(st.sampled_from("abcdefghijkl"), min_size=20, max_size=60).filter(lambda g: len(set(g)) >= 8)


@given(groups=many_groups, folds=st.integers(1, 4), val=st.integers(0, 4), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_group_is_in_two_parts_and_every_case_is_tested_once(groups, folds, val, seed):
    prepared = prepared_with(groups)
    tested = []
    for fold in range(folds):
        part = split(prepared, val_cases=val, folds=folds, fold=fold, seed=seed)
        sides = [groups_of(prepared, names) for names in (part.train, part.val, part.test)]
        assert len(sides[0] | sides[1] | sides[2]) == sum(map(len, sides))
        assert sorted(part.train + part.val + part.test) == [record.name for record in prepared.cases]
        assert bool(part.val) == bool(val)
        assert part.train
        tested += part.test
    assert len(tested) == len(set(tested))
    if folds > 1:
        assert sorted(tested) == [record.name for record in prepared.cases]


@given(groups=many_groups, seed=st.integers(0, 5), data_=st.data())
@settings(max_examples=60, deadline=None)
def test_smaller_subsets_are_part_of_larger_ones_and_reach_all_groups(groups, seed, data_):
    prepared = prepared_with(groups)
    train = tuple(record.name for record in prepared.cases)
    small = data_.draw(st.integers(1, len(train) - 1))
    large = data_.draw(st.integers(small, len(train)))
    few, more = (data.nested_subset(prepared, train, size, seed=seed) for size in (small, large))
    assert (len(few), len(more)) == (small, large)
    assert set(few) <= set(more)
    assert len(groups_of(prepared, few)) == min(small, len(set(groups)))
    assert data.nested_subset(prepared, train, 0, seed=seed) == train


def test_asked_sizes_are_met_where_groups_have_one_case():
    prepared = prepared_with([f"g{i}" for i in range(30)])
    part = split(prepared, val_cases=4, test_cases=7)
    assert (len(part.train), len(part.val), len(part.test)) == (19, 4, 7)
    assert len(split(prepared).test) == 6
    tests = [set(split(prepared, test_cases=7, folds=3, fold=fold).test) for fold in range(3)]
    assert len(set.union(*tests)) == 21


def test_folds_of_unequal_groups_are_even():
    prepared = prepared_with(["a"] * 8 + ["b"] * 5 + list("cdefghi"))
    sizes = [len(split(prepared, val_cases=1, folds=3, fold=fold).test) for fold in range(3)]
    assert sorted(sizes) == [6, 6, 8]


def test_the_draw_depends_on_seed_and_names_only():
    groups = [f"g{i}" for i in range(20)]
    first, again, other = (split(prepared_with(groups), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    backwards = prepared_with(groups)
    backwards = PreparedTask(**{**vars(backwards), "cases": backwards.cases[::-1]})
    assert split(backwards) == first
    train = first.train
    assert data.nested_subset(prepared_with(groups), train, 5, seed=0) != data.nested_subset(
        prepared_with(groups), train, 5, seed=1
    )
    assert data.nested_subset(prepared_with(groups), train[::-1], 5, seed=0) == data.nested_subset(
        prepared_with(groups), train, 5, seed=0
    )


def test_patients_held_out_of_a_target_take_no_part_in_its_source():
    patients = [f"p{i}" for i in range(20)]
    target, source = prepared_with(patients), prepared_with([*patients[::-1], "q1", "q2"])
    held = data.held_out_groups(target, split(target, val_cases=3, test_cases=4))
    assert len(held) == 7
    part = split(source, exclude_groups=held)
    assert not groups_of(source, part.train + part.val + part.test) & held
    assert len(part.train + part.val + part.test) == 15


def test_listed_splits_are_honoured():
    names = [f"case_{i:03d}" for i in range(6)]
    splits = ((tuple(names[2:]), tuple(names[:2])), (tuple(names[:4]), tuple(names[4:])))
    prepared = prepared_with("abcdef", splits)
    first, second = (split(prepared, val_cases=1, folds=2, fold=fold) for fold in range(2))
    assert (first.test, second.test) == (("case_000", "case_001"), ("case_004", "case_005"))
    assert len(first.val) == 1
    assert set(first.val) < set(names[2:])
    assert sorted(first.train + first.val) == names[2:]


def test_a_source_whose_listed_test_cases_are_all_held_out_is_split_like_one_without_a_list():
    """As the target's own data is: what the target tests is what the list tests."""
    names = [f"case_{index:03d}" for index in range(9)]
    splits = ((tuple(names[2:8]), tuple(names[:2])),)  # case_008 is in no fold
    prepared = prepared_with("abcdefghi", splits)
    target = split(prepared, val_cases=1)
    held = data.held_out_groups(prepared, target)
    source = split(prepared, val_cases=1, test_cases=1, exclude_groups=held)
    assert sorted(source.train + source.val + source.test) == list(target.train)
    assert [len(part) for part in (source.train, source.val, source.test)] == [3, 1, 1]
    partly = split(prepared, val_cases=1, exclude_groups={"a"})
    assert partly.test == ("case_001",), "where something of it is left, the list holds"
    with pytest.raises(UserError, match="no case to test on"):
        split(prepared_with("abcd", ((("case_000",), ()),)), exclude_groups={"d"})


@pytest.mark.parametrize(
    ("groups", "splits", "arguments", "message"),
    [
        ("abcdef", None, {"fold": 1}, "fold 1 does not exist"),
        ("a", None, {}, r"1 group\(s\)"),
        ("abc", None, {"folds": 4}, r"3 group\(s\)"),
        ("abcd", None, {"val_cases": 3, "test_cases": 1}, "nothing is left"),
        ("aaaabbbb", None, {"val_cases": 1, "test_cases": 1}, "nothing is left"),
        ("abcdef", None, {"test_cases": 4, "folds": 2, "fold": 1, "val_cases": 0}, None),
        ("abcdef", None, {"test_cases": 3, "folds": 3, "fold": 2, "val_cases": 0}, "need more than its 6 cases"),
        (
            "aabb",
            ((("case_000", "case_002"), ("case_001", "case_003")),),
            {},
            "cases of one group are in train and in val",
        ),
        ("abcd", ((("case_000", "case_001"), ("case_001",)),), {}, "in train and in val"),
        ("abcd", ((("case_000", "case_009"), ("case_001",)),), {}, "unknown cases: case_009"),
        ("abcd", ((("case_000",), ()),), {}, "no case to test"),
        ("abcd", ((("case_000",), ("case_001",)),), {"folds": 2, "fold": 1}, r"there are 1 fold\(s\)"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(groups, splits, arguments, message):
    prepared = prepared_with(groups, splits)
    if message is None:  # the second fold takes what the first has left
        assert len(split(prepared, **arguments).test) == 2
    else:
        with pytest.raises(UserError, match=message):
            split(prepared, **arguments)


def test_a_subset_larger_than_the_training_set_is_refused():
    prepared = prepared_with("abcdef")
    with pytest.raises(UserError, match="asks for 9 cases and the split leaves 6"):
        data.nested_subset(prepared, [record.name for record in prepared.cases], 9, seed=0)


def test_the_cardiac_sets_are_split_by_patient_together(make_task, shared_data, tmp_path):
    groups = {}
    for name in ("cardiac_ed_mr", "cardiac_es_mr"):
        mapping = json.loads((shared_data / name / "dataset.json").read_text())["groups"]
        groups[name] = prepared_with(list(mapping.values()))
    target = groups["cardiac_es_mr"]
    held = data.held_out_groups(target, split(target, val_cases=4))
    source = split(groups["cardiac_ed_mr"], exclude_groups=held)
    assert not groups_of(groups["cardiac_ed_mr"], source.train) & held
