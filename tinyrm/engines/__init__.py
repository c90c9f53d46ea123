"""Engines behind one contract. Each runtime has its own module, imported only when one of its engines is opened."""

from tinyrm.engines.base import Engine, EngineInfo
from tinyrm.engines.registry import ENGINES, EngineOptions, open_engine, warm_up

__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "open_engine", "warm_up"]
