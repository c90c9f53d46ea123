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
└── Unavailable               the service cannot take or finish this work now
    ├── Overloaded            too much is waiting
    ├── DeadlineExceeded      the time that the request gave itself is over
    ├── EngineRestarting      the engine failed as a whole, and another one is being started
    └── ShuttingDown          the service is leaving

``type`` is the stable name that clients see; it never changes once released.
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
