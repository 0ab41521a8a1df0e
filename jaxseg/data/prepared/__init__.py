"""Cases on the training grid, normalised once and kept in a store."""
