"""Tables that a page shows beside the claims, made by the same rules from the same tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd

from jaxseg.study.claims.evidence import gather
from jaxseg.study.claims.layers import layer_table, similarity_means
from jaxseg.study.claims.record import Study
from jaxseg.study.claims.speed import speed_table
from jaxseg.study.claims.table import fold_of


def shown_tables(study: Study, *, confidence: float) -> Mapping[str, pd.DataFrame]:
    """speed, layers and similarity_means, by name.

    Args:
        study: Its record and tables.
        confidence: Of the intervals of the last two; those of `speed` are C1's.
    """
    evidence, fold = gather(study), fold_of(study)
    sizes = {int(size) for table in study.tables.values() for size in table["train_cases"].unique()}
    folds = dict.fromkeys(sorted(sizes, key=lambda size: (size == 0, size)), 0 if fold is None else fold)
    described = dataclasses.replace(evidence, level=1 - confidence)
    return {
        "speed": speed_table(evidence, folds),
        "layers": layer_table(described, folds),
        "similarity_means": similarity_means(described, folds),
    }
