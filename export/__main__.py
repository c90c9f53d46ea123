"""python -m export: turn a trained model into a bundle."""

import logging
import sys
from collections.abc import Sequence

from export.config import ExportOptions
from tinyrm.command_line import parse
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.manifest import Gate
from tinyrm.output import standard_output


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m export") -> int:
    """Export with the options of a command line, by default this process's. Return the exit code."""
    options = parse(ExportOptions, arguments, prog=prog)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    # Imported here: torch takes seconds, and `--help` does not need it.
    from export.pipeline import export_bundle

    try:
        manifest = export_bundle(options)
    except TinyRMError as error:
        print(f"export: {error.type}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a file without permission
        print(f"export: {error}", file=sys.stderr)
        return 1
    shown = sys.stderr if options.json else sys.stdout
    if options.json:
        print(manifest.to_json())
    for parity in manifest.parity:
        print(f"{parity.check}: {parity.max_difference:.1e} (allowed {parity.tolerance:.0e})", file=shown)
    stored = {f"stored {manifest.stored.dtype}": manifest.stored.gate} if manifest.stored else {}
    for precision, gate in {**manifest.gates, **stored}.items():
        print(describe_gate(precision, gate), file=shown)
    fit = manifest.calibration
    how = (
        f"fitted on {fit.pairs} pairs, standard error {fit.log_temperature_std:.0%}"
        if fit and fit.log_temperature_std
        else "not fitted"
    )
    own = "".join(f"; {domain} {one.temperature:.3f}" for domain, one in manifest.temperatures.items())
    print(
        f"temperature {manifest.temperature:.3f}, {how}{own}\n{manifest.identity} written to {options.out}", file=shown
    )
    return 0


def describe_gate(precision: str, gate: Gate) -> str:
    """Return one line on what a precision changes, and which products of int8 stay in fp32."""
    parts = [f"{gate.flips:.2%} of {gate.pairs} preferences flipped"]
    if gate.max_flips is not None:
        parts[0] += f" (allowed {gate.max_flips:.2%})"
    if gate.weighted_flips is not None and gate.max_weighted_flips is not None:
        parts.append(f"weighted by margins {gate.weighted_flips:.3%} (allowed {gate.max_weighted_flips:.3%})")
    if gate.share_rounded is not None:
        kept = f"; in fp32: {', '.join(gate.kept_fp32)}" if gate.kept_fp32 else ""
        parts.append(f"{gate.share_rounded:.0%} of the products in 8 bits{kept}")
    return f"{precision}: {', '.join(parts)}"


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
