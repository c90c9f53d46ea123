"""Engines behind one contract. Each runtime has its own module, imported only when one of its engines is opened."""

from tinyrm.engines.base import Engine, EngineInfo
from tinyrm.engines.registry import ENGINES, EngineOptions, open_engine, warm_up
from tinyrm.telemetry import disable_telemetry

__all__ = ["ENGINES", "Engine", "EngineInfo", "EngineOptions", "open_engine", "warm_up"]

disable_telemetry()  # here, because only modules of this package import a runtime, and this file is run before them
