"""Names the control arms that take the place of transfer in a comparison, and says what each is."""

PLACEBO = "scratch_b"
SHUFFLED, POSITIVE_CONTROL = "shuffled_source", "self_transfer"
CONTROLS = {
    PLACEBO: "placebo: only its seeds differ from scratch",
    SHUFFLED: "negative control: its source had nothing to teach",
    POSITIVE_CONTROL: "positive control: its source is the target task itself",
}
"""Control arms, with their descriptions."""
