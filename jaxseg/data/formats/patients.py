"""Names of patients, by which the cases of one person are kept together within a set and between sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxseg.data import names
from jaxseg.data.cases import CaseFiles


def patient(given: Any) -> str:
    """Return the one name of a patient, however the program wrote it that listed the cases; empty for NaN.

    Many programs turn a column of numbers with a gap into one of fractions, and nobody sees blanks around a name in a
    table. Spelled in two ways, a patient of two sets would be trained on and tested on.

    >>> [patient(given) for given in (7, 7.0, "7", "7.0", " 7", "P1 ", 7.5)]
    ['7', '7', '7', '7', '7', 'P1', '7.5']
    """
    if isinstance(given, (float, np.floating)):
        given = "" if np.isnan(given) else int(given) if float(given).is_integer() else given
    return re.sub(r"^(-?[0-9]+)\.0+$", r"\1", str(given).strip())


def group_warnings(cases: Iterable[CaseFiles], groups: Mapping[str, str], elsewhere: Iterable[str]) -> tuple[str, ...]:
    """Warn of cases without a patient among those with one, and of patients of cases that are not there.

    Args:
        cases: The cases that are used.
        groups: The patient of each case, as the data set says.
        elsewhere: Names of cases of the set that are there for another use, such as its test cases.
    """
    known = {case.name for case in cases}
    alone = sorted(known - set(groups)) if groups else []
    unknown = sorted(set(groups) - known - set(elsewhere))
    out = []
    if alone:
        out.append(f"`groups` does not name {names.several(alone)}: each counts as a group of its own")
    if unknown:
        out.append(f"`groups` names cases that are not there: {names.several(unknown)}")
    return tuple(out)
