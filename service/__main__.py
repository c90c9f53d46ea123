"""`python -m service`: serve the bundle in TINYRM_MODEL. `--settings` prints every setting."""

import os
import sys
from collections.abc import Sequence

from service.early import leave_on_signals, open_standard_streams
from tinyrm.output import standard_output


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    if sys.argv[1:] if arguments is None else arguments:
        # Here, because a start without options needs no command line, and its import takes 0.2 s.
        from service.options import ServeOptions
        from tinyrm.command_line import parse

        if parse(ServeOptions, arguments, prog=prog).settings:
            print(settings_table())
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
