"""Structured logs: one event per line, as JSON for programs or as text for people."""

import logging

import structlog

from tinyrm.errors import TinyRMError


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
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def describe_failure(error: BaseException) -> dict[str, str]:
    """Return the fields of one log line about an error: its type, and the reason in words.

    An error that we did not foresee is named by its class.
    """
    if isinstance(error, TinyRMError):
        return {"type": error.type, "reason": str(error)}
    reason = " ".join(str(error).split())
    return {"type": TinyRMError.type, "reason": f"{type(error).__name__}: {reason}" if reason else type(error).__name__}
