"""The project's own measurement: `scripts/bench`."""
