"""Black-box measurements: drives commands and servers. Of ours it imports the reader of preference pairs alone."""
