"""Volumes: what their files say, what their arrays hold, and how they come from one grid to another."""
