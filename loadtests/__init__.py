"""Measurements from outside: commands and servers are started as processes, loaded, killed and timed."""
