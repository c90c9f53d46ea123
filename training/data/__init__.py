"""Preference pairs from the published sets and from our own files, cleaned and counted."""

from training.data.cleaning import Loaded
from training.data.loading import Mixture, load, load_all, load_conversations
from training.data.source import Source, published_pairs

__all__ = ["Loaded", "Mixture", "Source", "load", "load_all", "load_conversations", "published_pairs"]
