"""python -m export --model FOLDER_OR_HUB_ID [--adapter FOLDER] --out models/NAME: a trained model becomes a bundle."""

import argparse
import logging
import sys
from pathlib import Path

from tinyrm.template import TEMPLATES

PRECISIONS = ("fp32", "bf16", "int8")


def main() -> int:
    options = _parser().parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    from export.config import ExportOptions
    from export.pipeline import export_bundle
    from tinyrm.errors import TinyRMError

    try:
        arguments = vars(options) | {"precisions": tuple(dict.fromkeys(options.precisions))}
        manifest = export_bundle(ExportOptions(**arguments))
    except TinyRMError as error:
        print(f"export: {error.type}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a model, adapter or hub id that is not there
        print(f"export: cannot read: {error}", file=sys.stderr)
        return 1
    for parity in manifest.parity:
        print(f"{parity.check}: {parity.max_difference:.1e} (allowed {parity.tolerance:.0e})")
    for precision, gate in manifest.gates.items():
        print(f"{precision}: {gate.flips:.2%} of {gate.pairs} preferences flipped (allowed {gate.max_flips:.2%})")
    print(f"temperature {manifest.temperature:.3f}\n{manifest.identity} written to {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of a masked LM")
    parser.add_argument("--adapter", type=Path, help="folder of a DoRA or LoRA adapter trained on it")
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write, such as models/mine")
    parser.add_argument(
        "--calibration", type=Path, help="pairs that fit the temperature; default: those training held out"
    )
    parser.add_argument("--card", type=Path, help="model card, becomes the bundle's README.md")
    parser.add_argument("--template", choices=sorted(TEMPLATES), help="for a model trained elsewhere; default: figure2")
    parser.add_argument("--max-tokens", type=int, help="for a model trained elsewhere; default: 2048")
    parser.add_argument(
        "--graph", choices=("auto", "plain", "optimised"), default="auto",
        help="auto: optimised for the ModernBERT family, else plain, as transformers computes it",
    )  # fmt: skip
    parser.add_argument(
        "--precision", dest="precisions", action="append", choices=PRECISIONS, default=["fp32"],
        help="a precision to write beside fp32, if it passes the gate; may be repeated",
    )  # fmt: skip
    parser.add_argument("--max-flips", type=float, default=0.005, help="share of preferences the gate lets change")
    parser.add_argument("--weights", action="store_true", help="write weights for the torch-cuda engine too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
