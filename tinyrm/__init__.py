"""TinyRM: pairwise reward models that read both answers at once."""

__version__ = "0.1.0"
