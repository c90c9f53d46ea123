"""Black-box measurements: drives commands and servers, imports nothing of ours."""
