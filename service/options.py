"""The command line of `tinyrm serve`. A start without options does not import it."""

from dataclasses import dataclass

from tinyrm.command_line import Flag


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Serve the bundle in TINYRM_MODEL. Every setting is an environment variable.

    Examples:
      tinyrm serve
      TINYRM_MODEL=models/mine TINYRM_PORT=9000 tinyrm serve
      TINYRM_MODEL=hf://ORG/NAME@COMMIT tinyrm serve
      tinyrm serve --settings | less
    """

    settings: Flag = False
    """Print the settings with their defaults, and exit."""
