"""What the service takes, how fast, and what it does with more than that."""
