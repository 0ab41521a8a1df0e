"""Computations on tables, parameters and activations: arrays in, arrays out."""
