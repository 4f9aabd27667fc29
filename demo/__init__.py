"""The demo model: a story grammar, its training script and the trained checkpoint."""
