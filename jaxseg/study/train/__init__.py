"""Trains the runs of a plan, one compiled job at a time."""
