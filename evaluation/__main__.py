"""python -m evaluation: measure how good a model is, with intervals.

Prints Markdown tables; the last line is JSON. `--out` writes tables, JSON and two pictures, `--record` writes the
results into the bundle's manifest, and `--card` writes the tables between the markers of the bundle's README.md.
`--against` evaluates another model on the same items and shows the differences.
"""

import logging
import sys
from collections.abc import Sequence

from evaluation.options import Options
from tinyrm.command_line import parse
from tinyrm.errors import TinyRMError
from tinyrm.output import standard_output


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m evaluation") -> int:
    """Evaluate as the command line says, by default this process's. Return the exit code."""
    options = parse(Options, arguments, prog=prog)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("evaluation").setLevel(logging.INFO)
    try:
        from evaluation.paired import evaluate_both, write_both
        from evaluation.run import evaluate, write, write_temperature

        if options.against:
            paired = evaluate_both(options)
            print(paired.text, flush=True)
            write_both(options, paired)
            return 0
        evaluated = write_temperature(options, evaluate(options))
        # Before anything else is written: a full disk must not lose what took minutes to compute.
        print(evaluated.text, flush=True)
        write(options, evaluated)
    except TinyRMError as error:
        print(f"evaluation: {error.type}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        extras = "evaluation,train" if options.checkpoint else "evaluation"
        print(f"evaluation: {error}; install the extra: pip install 'tinyrm[{extras}]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with standard_output():
        sys.exit(main())
