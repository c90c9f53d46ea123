"""What can be evaluated: one module for each kind."""
