"""python -m export: turn a trained model into a bundle."""

import logging
import sys
from collections.abc import Sequence

from export.config import ExportOptions
from tinyrm.command_line import parse
from tinyrm.errors import TinyRMError
from tinyrm.output import standard_output


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Export as the command line says, by default this process's. Return the exit code."""
    options = parse(ExportOptions, arguments, prog=prog)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    # Imported here: torch takes seconds, and `--help` does not need it.
    from export.pipeline import export_bundle

    try:
        manifest = export_bundle(options)
    except TinyRMError as error:
        print(f"export: {error.type}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a file without permission
        print(f"export: {error}", file=sys.stderr)
        return 1
    for parity in manifest.parity:
        print(f"{parity.check}: {parity.max_difference:.1e} (allowed {parity.tolerance:.0e})")
    stored = {f"stored {manifest.stored.dtype}": manifest.stored.gate} if manifest.stored else {}
    for precision, gate in {**manifest.gates, **stored}.items():
        print(f"{precision}: {gate.flips:.2%} of {gate.pairs} preferences flipped (allowed {gate.max_flips:.2%})")
    fit = manifest.calibration
    how = (
        f"fitted on {fit.pairs} pairs, standard error {fit.log_temperature_std:.0%}"
        if fit and fit.log_temperature_std
        else "not fitted"
    )
    own = "".join(f"; {domain} {one.temperature:.3f}" for domain, one in manifest.temperatures.items())
    print(f"temperature {manifest.temperature:.3f}, {how}{own}\n{manifest.identity} written to {options.out}")
    return 0


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
