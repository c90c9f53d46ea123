"""Every error the product raises on purpose.

TinyRMError
├── InvalidInput              the caller sent something that cannot be scored
│   ├── InvalidText           text that is not valid Unicode
│   ├── InstructionTooLong    the instruction leaves no room for the texts
│   ├── UnknownDomain         no such domain in the bundle
│   └── UnknownModel          no such model in this deployment
├── InvalidTemplate           a template that cannot be read out, or does not fit the tokenizer
├── InvalidBundle             a bundle that cannot be opened
│   ├── TamperedBundle        a file does not match its recorded hash
│   └── UnknownSchema         written by another version of the format
├── EngineError               the engine could not answer
│   ├── EngineUnavailable     the engine asked for is not installed or not usable here
│   └── EngineFailed          the engine raised, or returned something that is not two finite logits
│       └── EngineHung        the engine did not answer in time
├── Unavailable               the service cannot take or finish this work now
│   ├── Overloaded            too much is waiting
│   ├── DeadlineExceeded      the time that the request gave itself is over
│   ├── EngineRestarting      the engine failed as a whole, and another one is being started
│   └── ShuttingDown          the service is leaving
└── CallFailed                a call of the client did not get what it asked for
    ├── CallRefused           the service will not answer this call, however often it is repeated
    ├── CallTimedOut          no answer within the time that the call had
    ├── ServiceBusy           the service takes no work now, and did not in any of the tries
    ├── ServiceFailed         the service failed on this call, or what answered is not the service
    └── ServiceUnreachable    no connection, or it was lost, in all of the tries

``type`` is the stable name that clients see; it never changes once released. A CallFailed has the one that the
service sent.
"""


class TinyRMError(Exception):
    type = "internal_error"


class InvalidInput(TinyRMError):
    type = "invalid_input"


class InvalidText(InvalidInput):
    type = "invalid_text"


class InstructionTooLong(InvalidInput):
    type = "instruction_too_long"


class UnknownDomain(InvalidInput):
    type = "unknown_domain"


class UnknownModel(InvalidInput):
    type = "unknown_model"


class InvalidTemplate(TinyRMError):
    type = "invalid_template"


class InvalidBundle(TinyRMError):
    type = "invalid_bundle"


class TamperedBundle(InvalidBundle):
    type = "tampered_bundle"


class UnknownSchema(InvalidBundle):
    type = "unknown_schema"


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


class ShuttingDown(Unavailable):
    type = "shutting_down"


class CallFailed(TinyRMError):
    """`type` is what the service called it, or else the name of the class.

    status: the HTTP status, None if nothing was answered. request_id: what the service's log calls this call.
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
    """retry_after_s: how long the service wants to be left alone; None if it did not say."""

    type = "service_busy"
    retry_after_s: float | None = None


class ServiceFailed(CallFailed):
    type = "service_failed"


class ServiceUnreachable(CallFailed):
    type = "service_unreachable"
