"""The stock ONNX export of a masked LM folder: optimum-onnx, task fill-mask. Runs in .venv/bench-optimum."""

import argparse
import sys
from pathlib import Path

from optimum.exporters.onnx import main_export


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    main_export(str(options.model), options.out, task="fill-mask", device="cpu", dtype="fp32", local_files_only=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
