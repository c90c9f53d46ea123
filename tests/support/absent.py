"""Modules that a client's code imports, and that no path to a reward uses."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


def import_as_nothing(*names: str) -> None:
    """Import these modules, and those below them, as ones in which any name is None.

    names: one that ends in a dot stands for what is below it alone.
    """
    sys.meta_path.insert(0, _Absent(names))


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name.rstrip('.')}.") for name in self.names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = lambda _: None
