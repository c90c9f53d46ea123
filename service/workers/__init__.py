"""Several worker processes that serve HTTP, with one queue and one engine for each bundle."""
