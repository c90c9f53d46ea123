"""The command `tinyrm`: what the client does, from a shell.

Exit codes: 0 done; 1 the service did not answer as asked, or a line could not be scored; 2 the command cannot be run as
it is written; 130 interrupted.
"""

import sys
from collections.abc import Sequence

from tinyrm.cli.options import parser
from tinyrm.errors import CallFailed, InvalidInput, TinyRMError

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    try:
        done: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the answers has left; Python would complain about it at its end
        return FAILED
    except InvalidInput as error:
        return _complain(error, USAGE)
    except (TinyRMError, OSError) as error:
        return _complain(error, FAILED)
    return done


def _complain(error: Exception, code: int) -> int:
    request = f" [request {error.request_id}]" if isinstance(error, CallFailed) and error.status else ""
    print(f"tinyrm: {' '.join(str(error).split())}{request}", file=sys.stderr)
    return code
