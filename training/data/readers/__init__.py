"""One module for each published data set."""
