"""Memory that is free, given back to the system."""

import ctypes


def give_back_memory() -> None:
    """glibc keeps what its threads freed, hundreds of MiB after a long text; elsewhere there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
