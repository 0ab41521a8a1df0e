"""Tables become figures and one self-contained page."""
