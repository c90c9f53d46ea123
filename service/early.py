"""What the main process does before it imports the rest, which takes a second.

Imports as little as possible: as process 1 of a container, a process ignores every signal until it has a handler.
"""

import os
import signal
import sys

STOP = (signal.SIGTERM, signal.SIGINT)


def open_standard_streams() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed, so that no socket or file gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def leave_on_signals() -> None:
    """Exit with code 0 on SIGTERM and SIGINT until an event loop handles them; ignore SIGHUP: nothing is loaded yet."""

    def leave(number: int, _: object) -> None:
        os.write(2, f"tinyrm: stopped by {signal.Signals(number).name} during the start\n".encode())
        # Not SystemExit: code that is being imported may catch it, and nothing is there yet to be cleaned up.
        os._exit(0)

    for number in STOP:
        signal.signal(number, leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
