"""The edge: every request passes these layers before a handler sees it. stack.py lists them in order."""
