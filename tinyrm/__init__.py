"""TinyRM: small encoder reward models that score which of two responses is better.

Score in this process:

    scorer = tinyrm.load("models/starter")
    scorer.compare("What is 2 + 2?", "4", "5", domain="chat").p_a

Call a service:

    client = tinyrm.Client("http://localhost:8000")
    client.compare("What is 2 + 2?", "4", "5", domain="chat").probability_a
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyrm.cascade import Cascade
    from tinyrm.chat import Message
    from tinyrm.client import AsyncClient, Client, CompareItem, CompareReply, ItemError, RankReply, RewardsReply
    from tinyrm.comparison import Comparison, Preference
    from tinyrm.errors import CallFailed, InvalidInput, TinyRMError
    from tinyrm.scorer import Scorer, load

__all__ = [
    "AsyncClient",
    "CallFailed",
    "Cascade",
    "Client",
    "CompareItem",
    "CompareReply",
    "Comparison",
    "InvalidInput",
    "ItemError",
    "Message",
    "Preference",
    "RankReply",
    "RewardsReply",
    "Scorer",
    "TinyRMError",
    "__version__",
    "load",
]
__version__ = "0.1.0"

# Imported at first use: a client needs an HTTP library, a scorer the extra `local`; few programs need both.
_MODULES = {
    "AsyncClient": "tinyrm.client",
    "CallFailed": "tinyrm.errors",
    "Cascade": "tinyrm.cascade",
    "Client": "tinyrm.client",
    "CompareItem": "tinyrm.client",
    "CompareReply": "tinyrm.client",
    "Comparison": "tinyrm.comparison",
    "InvalidInput": "tinyrm.errors",
    "ItemError": "tinyrm.client",
    "Message": "tinyrm.chat",
    "Preference": "tinyrm.comparison",
    "RankReply": "tinyrm.client",
    "RewardsReply": "tinyrm.client",
    "Scorer": "tinyrm.scorer",
    "TinyRMError": "tinyrm.errors",
    "load": "tinyrm.scorer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "tokenizers"):
            raise
        raise ModuleNotFoundError(
            f"tinyrm.{name} computes in this process and needs {error.name}: pip install 'tinyrm[local]'",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
