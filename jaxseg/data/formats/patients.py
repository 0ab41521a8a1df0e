"""Names of patients, by which the cases of one person are kept together within a set and between sets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np


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
