"""All errors that the product raises on purpose.

TinyRMError
├── InvalidInput              the input cannot be scored
│   ├── InvalidRequest        a body, an item of a list or a row does not have the expected shape
│   │   ├── UnknownForm       the columns or keys of a row or a message are of no known form
│   │   ├── MissingText       a text of a row is missing
│   │   └── Mismatch          the responses of a row are not two responses to one prompt
│   ├── InvalidText           a text is not valid Unicode
│   ├── InstructionTooLong    the instruction leaves no room for the texts
│   ├── UnknownDomain         the bundle has no such domain
│   ├── UnknownModel          the service has no such model
│   ├── NotPointwise          the model reads pairs and cannot score one response alone
│   └── NoCascade             the service does not have the two models of a cascade
├── InvalidSettings           settings contradict each other or the bundle, or do not exist
├── InvalidKeys               a file of API keys cannot be read
├── InvalidTemplate           a template cannot be read out, or does not fit the tokenizer
├── InvalidBundle             a bundle cannot be opened
│   ├── BundleUnavailable     a bundle cannot be fetched now
│   ├── TamperedBundle        a file does not match its recorded hash
│   └── UnknownSchema         another version of the format
├── TiedWeightChanged         merging an adapter changed the embedding that its target is tied to
├── ParityFailed              two ways to compute the same logits disagree
├── PrecisionRefused          a lower precision changes more verdicts than allowed
├── EngineError               the engine returned no result
│   ├── EngineUnavailable     the requested engine is not installed or not usable here
│   └── EngineFailed          the engine raised, or did not return two finite logits
│       └── EngineHung        the engine did not return in time
├── Unavailable               the service cannot accept or finish this work now
│   ├── Overloaded            the queue is full
│   ├── DeadlineExceeded      the request's own time limit has passed
│   ├── EngineRestarting      the engine process ended, and another one is starting
│   ├── IncompleteGroup       not all samples of a group arrived in time
│   └── ShuttingDown          the service is shutting down
└── CallFailed                a call of the client failed
    ├── CallRefused           the service refuses this call, however often it is repeated
    ├── CallTimedOut          no reply within the call's time limit
    ├── ServiceBusy           the service accepted no work in any of the tries
    ├── ServiceFailed         the service failed on this call, or another program replied
    └── ServiceUnreachable    no connection, or a lost one, in all of the tries

``type`` is the stable name that clients see; it never changes once released. A CallFailed has the type that the
service sent.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

# Pydantic puts the tag of a union's branch into the path of an error. Messages leave out parts with this prefix.
BRANCH = "branch:"
# How pydantic names a validator in such a path.
VALIDATORS = ("function-before[", "function-after[", "function-wrap[", "function-plain[")
# Characters of one part of a path that a message repeats.
MAX_KEY = 60


class TinyRMError(Exception):
    type = "internal_error"


class InvalidInput(TinyRMError):
    type = "invalid_input"


class InvalidRequest(InvalidInput):
    type = "invalid_request"


class UnknownForm(InvalidRequest):
    """Most likely, all rows of the set have this form."""

    type = "unknown_form"


class MissingText(InvalidRequest):
    type = "missing_text"


class Mismatch(InvalidRequest):
    type = "mismatch"


class InvalidText(InvalidInput):
    type = "invalid_text"


class InstructionTooLong(InvalidInput):
    type = "instruction_too_long"


class UnknownDomain(InvalidInput):
    type = "unknown_domain"


class UnknownModel(InvalidInput):
    type = "unknown_model"


class NotPointwise(InvalidInput):
    type = "not_pointwise"


class NoCascade(InvalidInput):
    type = "no_cascade"


class InvalidSettings(TinyRMError):
    type = "invalid_settings"


class InvalidKeys(TinyRMError):
    type = "invalid_keys"


class InvalidTemplate(TinyRMError):
    type = "invalid_template"


class InvalidBundle(TinyRMError):
    type = "invalid_bundle"


class BundleUnavailable(InvalidBundle):
    type = "bundle_unavailable"


class TamperedBundle(InvalidBundle):
    type = "tampered_bundle"


class UnknownSchema(InvalidBundle):
    type = "unknown_schema"


class TiedWeightChanged(TinyRMError):
    type = "tied_weight_changed"


class ParityFailed(TinyRMError):
    type = "parity_failed"


class PrecisionRefused(TinyRMError):
    type = "precision_refused"


class EngineError(TinyRMError):
    type = "engine_error"


class EngineUnavailable(EngineError):
    type = "engine_unavailable"


class EngineFailed(EngineError):
    type = "engine_failed"


class EngineHung(EngineFailed):
    type = "engine_hung"


class Unavailable(TinyRMError):
    type = "unavailable"


class Overloaded(Unavailable):
    type = "overloaded"


class DeadlineExceeded(Unavailable):
    type = "deadline_exceeded"


class EngineRestarting(Unavailable):
    type = "engine_restarting"


class IncompleteGroup(Unavailable):
    type = "incomplete_group"


# Messages of ShuttingDown, for new work and for work that was accepted.
NOT_ACCEPTED = "the service is shutting down; send the request to another replica"
NOT_FINISHED = "the service shut down before this request had a result"


class ShuttingDown(Unavailable):
    type = "shutting_down"


class CallFailed(TinyRMError):
    """A failed call. `type` is what the service sent, otherwise that of the class.

    status: the HTTP status; None without a reply.
    request_id: the call's id in the service's log.
    """

    type = "call_failed"

    def __init__(
        self, message: str, *, kind: str | None = None, status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.type = kind or type(self).type
        self.status = status
        self.request_id = request_id


class CallRefused(CallFailed):
    type = "call_refused"


class CallTimedOut(CallFailed):
    type = "call_timed_out"


class ServiceBusy(CallFailed):
    """The service accepted no work.

    retry_after_s: the service's Retry-After; None without one.
    """

    type = "service_busy"
    retry_after_s: float | None = None


class ServiceFailed(CallFailed):
    type = "service_failed"


class ServiceUnreachable(CallFailed):
    type = "service_unreachable"


def from_type(type_: str, message: str) -> TinyRMError:
    """Return the error that another process raised: an instance of the class with this type."""
    kinds = [TinyRMError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.type == type_), TinyRMError)(message)


def from_validation(
    error: ValidationError | Sequence[Any], *, within: Iterable[object] = (), root: str = ""
) -> InvalidInput:
    """Return the first error of a failed validation, as an InvalidText or an InvalidRequest.

    The message is one sentence, `field: what is wrong`, and does not repeat the value that was sent.

    error: of pydantic, or the list of its `errors()`.
    within: path of the validated value.
    root: name of the whole value, for an error that concerns no single field; left out at the beginning of a path.
    """
    errors = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else error
    first = errors[0]
    location = first["loc"][1:] if first["loc"][:1] == (root,) else first["loc"]
    # A part of the path may be a key that was sent, of any length; branches and validators of the schema say nothing.
    parts = [str(part) for part in (*within, *location) if not str(part).startswith((BRANCH, *VALIDATORS))]
    path = ".".join(part if len(part) <= MAX_KEY else f"{part[:MAX_KEY]}..." for part in parts) or root
    kind = InvalidText if first["type"] == "string_unicode" else InvalidRequest
    # A sentence of our own names its fields itself; pydantic puts words before it.
    is_ours = first["type"] == "value_error"
    reason = str(first["ctx"]["error"]) if is_ours else first["msg"]
    return kind(reason if not path or (is_ours and path == root) else f"{path}: {reason}")


def describe(error: ValidationError) -> str:
    """Return the first error of a failed validation as one sentence; see `from_validation`."""
    return str(from_validation(error))


@contextmanager
def first_of_group() -> Iterator[None]:
    """Raise the first error of a task group, which has cancelled the other tasks, in place of the ExceptionGroup."""
    try:
        yield
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
