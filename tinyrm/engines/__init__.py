"""Engines behind one contract. Each runtime is a module of its own, imported only when an engine of it is opened."""

from tinyrm.engines.base import Engine, EngineInfo
from tinyrm.engines.registry import ENGINES, EngineOptions, open_engine, warm_up

__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "open_engine", "warm_up"]
