"""Programs that make or check what the repository holds."""
