"""python -m evaluation: measure how good a model is, with intervals.

Prints Markdown tables; the last line is JSON. `--out` writes tables, JSON and two pictures, `--record` writes the
results into the bundle's manifest, and `--card` writes the tables between the markers of the bundle's README.md.
`--against` evaluates another model on the same items and shows the differences.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluation.options import Options
from tinyrm.command_line import parse
from tinyrm.errors import InvalidInput, TinyRMError
from tinyrm.output import standard_output
from tinyrm.places import FETCHING

if TYPE_CHECKING:
    from evaluation.paired import Paired
    from evaluation.run import Evaluation


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m evaluation") -> int:
    """Evaluate with the options of a command line, by default this process's. Return the exit code."""
    logging.basicConfig(format="%(message)s")
    for name in ("evaluation", *FETCHING):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        options = parse(Options, arguments, prog=prog)
        if not (options.bundle or options.checkpoint or options.service):
            options = replace(options, service=os.environ.get("TINYRM_URL") or None)
        from evaluation.paired import evaluate_both, write_both
        from evaluation.run import evaluate, write, write_temperature

        if options.against:
            paired = evaluate_both(options)
            show(paired, as_json=options.json)
            write_both(options, paired)
            return 0
        evaluated = write_temperature(options, evaluate(options))
        # Before anything else is written: a full disk must not lose what took minutes to compute.
        show(evaluated, as_json=options.json)
        write(options, evaluated)
    except TinyRMError as error:
        print(f"evaluation: {error.type}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInput) else 1
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        extras = "evaluation,train" if "--checkpoint" in (arguments or sys.argv) else "evaluation"
        print(f"evaluation: {error}; install the extra: pip install 'tinyrm[{extras}]'", file=sys.stderr)
        return 1
    return 0


def show(done: "Evaluation | Paired", *, as_json: bool) -> None:
    """Print tables and JSON, or only JSON on standard output."""
    if as_json:
        print(f"{done.title}\n\n{done.markdown}", file=sys.stderr)
        print(json.dumps(done.content), flush=True)
    else:
        print(done.text, flush=True)


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
