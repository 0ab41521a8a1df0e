"""Plans a study before anything runs: what it trains, on which cases and from which starting points."""
