"""One program for each kind of contender. Each runs in an environment of its own and answers JSON lines."""
