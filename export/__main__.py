"""`tinyrm export`, `python -m export`: turn a trained model into a bundle."""

import logging
import sys

from export.config import ExportOptions
from tinyrm.command_line import parse
from tinyrm.errors import TinyRMError


def main() -> int:
    options = parse(ExportOptions, prog="tinyrm export")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    # Imported here: torch takes seconds, and `--help` does not need it.
    from export.pipeline import export_bundle

    try:
        manifest = export_bundle(options)
    except TinyRMError as error:
        print(f"export: {error.type}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a missing model, adapter or hub id
        print(f"export: cannot read: {error}", file=sys.stderr)
        return 1
    for parity in manifest.parity:
        print(f"{parity.check}: {parity.max_difference:.1e} (allowed {parity.tolerance:.0e})")
    for precision, gate in manifest.gates.items():
        print(f"{precision}: {gate.flips:.2%} of {gate.pairs} preferences flipped (allowed {gate.max_flips:.2%})")
    print(f"temperature {manifest.temperature:.3f}\n{manifest.identity} written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
