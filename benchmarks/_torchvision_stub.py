"""A stand-in for torchvision, as far as timm and transformers need it to be imported.

The builds of torchvision that package indexes offer beside a CPU build of torch do not import.
Model code uses almost nothing of it: names in annotations, a few layers, tables of transforms.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any, Final

from torch import nn

__all__ = ["install"]

VERSION: Final = "0.28.0"


class _Anything(type):
    """Classes whose every attribute is a string: enough for enumerations used as keys."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        base = nn.Module if self.__name__.startswith("torchvision.ops") else object
        if base is object and name[:1].isupper():
            made: Any = _Anything(name, (), {})
        elif name[:1].isupper():
            made = type(name, (base,), {})
        else:
            made = _refuse
        setattr(self, name, made)
        return made


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("torchvision is not installed")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        module.__version__ = VERSION  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Make ``import torchvision`` succeed where it would fail."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    sys.meta_path.append(_Finder())
    found = importlib.metadata.version

    def version(name: str) -> str:
        return VERSION if name == "torchvision" else found(name)

    importlib.metadata.version = version
