"""Measures what training did to filters and representations, and how much runs differ."""
