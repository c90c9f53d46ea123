"""Several processes that speak HTTP, before one queue and one engine."""
