"""What a study trains, on which cases and with which starting points, before anything runs."""
