"""Segmentation metrics on boolean masks, in physical units."""
