"""Standard output of a command: what its encoding lacks, and a reader that has gone."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def standard_output() -> Iterator[None]:
    """Print to the end of the context, and then nothing more.

    A character that the encoding of standard output lacks becomes `?`: an error after the work would lose the result.
    If the output is no longer read, as by `| head`, the command ends with 1 and without a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        raise SystemExit(1) from None
    except OSError:
        _discard()
        raise


def _discard() -> None:
    """Drop what is still buffered: Python would write it at exit, and print an error about it."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
