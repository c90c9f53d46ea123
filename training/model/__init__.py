"""What a stage trains: adapters, heads, and how trained models are opened and merged."""
