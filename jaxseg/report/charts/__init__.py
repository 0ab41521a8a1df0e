"""Draw what they are given, and read no table."""
