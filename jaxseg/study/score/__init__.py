"""Scores trained networks on the test cases, and makes the tables of accuracy."""
