"""One program for each kind of contender. Each runs in its own environment and returns JSON lines."""
