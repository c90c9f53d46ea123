"""How many replicas, what they cost, and what breaks first: a simulation that is fed and checked by measurements."""
