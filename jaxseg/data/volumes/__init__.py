"""Volumes: the headers of their files, their arrays, and resampling from one grid to another."""
