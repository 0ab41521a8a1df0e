"""Names the control arms that take the place of transfer in a comparison, and says what each is."""

from jaxseg.study.claims.findings import CONTRADICTED, SUPPORTED

PLACEBO = "scratch_b"
SHUFFLED, POSITIVE_CONTROL = "shuffled_source", "self_transfer"
CONTROLS = {
    PLACEBO: "placebo: only its seeds differ from scratch",
    SHUFFLED: "negative control: its source had nothing to teach",
    POSITIVE_CONTROL: "positive control: its source is the target task itself",
}
"""Control arms, with their descriptions."""
_TRUE_OF_PLACEBO = frozenset({"C4b"})
"""Claims that are true of a placebo: that nothing is gained."""


def is_loud(claim: str, verdict: str) -> bool:
    """Tells whether a verdict on a placebo is one that a placebo should not earn, as if it were something else."""
    return verdict == (CONTRADICTED if claim in _TRUE_OF_PLACEBO else SUPPORTED)
