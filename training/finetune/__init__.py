"""From a file of pairs to a bundle in one command: what it chooses, how it runs, what it writes."""
