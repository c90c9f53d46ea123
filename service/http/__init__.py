"""The edge: every byte of HTTP passes here before a handler sees it, and on its way out."""
