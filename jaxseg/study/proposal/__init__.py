"""Settings proposed for a study from a look at its images, each with its reason."""
