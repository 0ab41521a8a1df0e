"""What tests of this folder share."""

import pytest

from jaxseg.study.claims.study_tables import StudyTables
from tests.study.whole_study import whole_study


@pytest.fixture(scope="session")
def study() -> StudyTables:
    """A simulated study in which transfer helps; tests must not change it."""
    return whole_study()
