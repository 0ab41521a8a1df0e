"""Names and numbers that the tables of a study reserve: no arm, label or fold may be called so."""

MEAN = "mean"
"""The label of scores that average a case's labels."""
POOLED = -1
"""The fold of scores that take the test cases of all folds together."""
SOURCE = "source"
"""The arm name of source networks in run keys and tables; further sources are `source_2`, `source_3`, ..."""
