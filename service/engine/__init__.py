"""The queue, and the engine behind it in a process of its own."""
