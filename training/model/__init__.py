"""What a stage trains: adapters, heads, merges."""
