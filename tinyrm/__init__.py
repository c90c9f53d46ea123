"""TinyRM: small encoder reward models that read both responses at once.

In this process:  `tinyrm.load("models/starter").compare(prompt, a, b, domain="chat")`
From a service:   `tinyrm.Client("http://localhost:8000").compare(prompt, a, b, domain="chat")`
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyrm.client import AsyncClient, Client
    from tinyrm.comparison import Comparison, Preference
    from tinyrm.scorer import Scorer, load

__all__ = ["AsyncClient", "Client", "Comparison", "Preference", "Scorer", "__version__", "load"]
__version__ = "0.1.0"

# Imported at first use: clients need an HTTP library, a scorer tokenizers and an engine; few programs need both.
_HOMES = {
    "AsyncClient": "tinyrm.client",
    "Client": "tinyrm.client",
    "Comparison": "tinyrm.comparison",
    "Preference": "tinyrm.comparison",
    "Scorer": "tinyrm.scorer",
    "load": "tinyrm.scorer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
