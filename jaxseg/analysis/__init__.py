"""What is computed from tables, parameters and activations: arrays in, arrays out."""
