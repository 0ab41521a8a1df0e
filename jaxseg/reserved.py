"""Names and numbers that the tables of a study reserve: no arm, label or fold may be called so."""

import re

MEAN = "mean"
"""The label of scores that average a case's labels."""
POOLED = -1
"""The fold of scores that take the test cases of all folds together."""
INTERNAL = "internal"
"""The test set of a study's own test cases, beside external sets."""
SOURCE = "source"
"""The arm name of source networks in run keys and tables; further sources are `source_2`, `source_3`, ..."""


def is_source(name: str) -> bool:
    """Return whether a name in run keys stands for source networks instead of an arm.

    >>> [is_source(name) for name in ("source", "source_2", "source_b")]
    [True, True, False]
    """
    return re.fullmatch(rf"{SOURCE}(_\d+)?", name) is not None
