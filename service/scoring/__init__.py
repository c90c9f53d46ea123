"""Comparisons and rankings, without HTTP."""
