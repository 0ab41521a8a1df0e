"""Fully convolutional networks as pure Flax modules, and the convolution they share."""
