"""Patches of the training cases, drawn inside the compiled step."""
