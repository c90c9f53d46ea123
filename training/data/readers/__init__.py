"""One module for each published data set, and dialogue.py for what they share."""
