"""ModernBERT in torch: the model, its attention strategies, checkpoints and adapters."""
