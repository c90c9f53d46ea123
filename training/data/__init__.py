"""What a model learns from: preference pairs, conversations and plain text."""
