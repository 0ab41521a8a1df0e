"""Settings and small image sets, shared by the tests of jaxseg.data."""

import pytest

from jaxseg.settings import AugmentSettings, TaskSettings
from tests import image_sets


@pytest.fixture(scope="session")
def make_task():
    def make(data, *, patch=(8, 8, 8), **overrides):
        augment = {"flip": (), "gamma": 0.0, "brightness": 0.0, "noise": 0.0} | overrides.pop("augment", {})
        values = {
            "data": str(data),
            "labels": (),
            "spacing_mm": "native",
            "unit": "mm",
            "train_cases": (0,),
            "val_cases": 1,
            "test_cases": 1,
            "folds": 1,
            "patch": patch,
            "normalization": "zscore",
            "foreground": 0.5,
            "augment": AugmentSettings(**augment),
        }
        return TaskSettings(**(values | overrides))

    return make


@pytest.fixture(scope="session")
def write_set():
    return image_sets.write_set


@pytest.fixture(scope="session")
def volume_of():
    return image_sets.make_volume


@pytest.fixture(scope="session")
def save_nifti():
    return image_sets.save
