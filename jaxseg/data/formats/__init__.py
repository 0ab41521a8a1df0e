"""Formats of a task's `data`: folders in several layouts, archives, TFDS datasets and synthetic cases."""
