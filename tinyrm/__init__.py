"""TinyRM: pairwise reward models that read both answers at once."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyrm.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients bring an HTTP library with them, and scoring on the spot needs none."""
    if name in ("AsyncClient", "Client"):
        return getattr(importlib.import_module("tinyrm.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
