"""Structured logs: one event per line, as JSON for programs or as text for people."""

import json
import logging
from contextlib import nullcontext
from functools import partial
from typing import TextIO

import structlog

from tinyrm.errors import TinyRMError

# They write the full URL of each request, and of each redirect: a signature in it lets anybody fetch what it signs.
WITH_URLS = ("httpx", "httpcore")


class LineLogger:
    """Writes finished lines to the stream of a handler."""

    def __init__(self, handler: "logging.StreamHandler[TextIO]", name: str = "root") -> None:
        self.name = name
        self._handler = handler

    def msg(self, line: str) -> None:
        handler = self._handler
        try:
            with handler.lock or nullcontext():
                handler.stream.write(f"{line}\n")
                handler.flush()
        except Exception:  # noqa: BLE001  # as `logging` does: a log that cannot be written ends no request
            return

    debug = info = warning = error = critical = exception = msg


def configure(level: str, form: str) -> None:
    """Format the events of this code and of the libraries in the same way.

    level: lowest level to log.
    form: json or text.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: pretty ones print local variables, which hold the texts of requests.
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer(
        colors=False, exception_formatter=structlog.dev.plain_traceback
    )
    if form == "json":
        shared.append(structlog.processors.format_exc_info)
        encode = json.JSONEncoder(default=repr).encode
        renderer = structlog.processors.JSONRenderer(serializer=lambda event, **_: encode(event))
    handler = logging.StreamHandler()
    # Our own events are written without the records of `logging`, which cost as much as everything else of a line.
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=partial(LineLogger, handler),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in WITH_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return the fields of one log line about an error: its type, and the reason in words.

    An error that we did not foresee is named by its class.
    """
    if isinstance(error, TinyRMError):
        return {"type": error.type, "reason": str(error)}
    reason = " ".join(str(error).split())
    return {"type": TinyRMError.type, "reason": f"{type(error).__name__}: {reason}" if reason else type(error).__name__}
