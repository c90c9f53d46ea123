"""Several front processes before one queue and one engine."""
