"""`python -m service`: serve the bundle in TINYRM_MODEL. `--settings` prints every setting."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from service.early import leave_on_signals, open_standard_streams
from tinyrm.output import standard_output


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Serve the bundle in TINYRM_MODEL. Every setting is an environment variable."""

    settings: bool = False
    """Print the settings with their defaults, and exit."""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    if sys.argv[1:] if arguments is None else arguments:
        # Here, because a start without options needs no command line, and its import takes 0.2 s.
        from tinyrm.command_line import parse

        if parse(ServeOptions, arguments, prog=prog).settings:
            try:
                print(settings_table(), flush=True)
            except BrokenPipeError:
                sys.stderr.close()  # the output is no longer read; Python would print an error about it at exit
            return 0
    open_standard_streams()
    leave_on_signals()
    # Here, because these imports take a second, in which a signal may arrive.
    from service.start import run

    return run(os.environ)


def settings_table() -> str:
    """Return the settings as a Markdown table."""
    from service.settings import PREFIX, Settings

    rows = [
        f"| `{PREFIX}{name.upper()}` | `{field.default}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
