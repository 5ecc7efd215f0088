"""The modules of a model, listed once for a capture: every part of it asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["ModuleTable", "module_names", "require_module"]


@dataclass(frozen=True, eq=False)
class ModuleTable:
    """Modules and their paths.

    Attributes:
        modules: In the order of ``named_modules``, each once.
        names: Path of every module, by its id.
        peers: Paths of the modules of each class.
    """

    modules: tuple[nn.Module, ...]
    names: dict[int, str]
    peers: dict[type[nn.Module], list[str]]

    @classmethod
    def of(cls, model: nn.Module) -> ModuleTable:
        """List the modules of a model; one that has no others goes by its class name.

        `torch.compile` wraps modules: a wrapper has the path of what it wraps.
        """
        names: dict[int, str] = {}
        modules: list[nn.Module] = []
        peers: dict[type[nn.Module], list[str]] = {}
        left: list[tuple[str, nn.Module]] = [("", model)]
        while left:  # `named_modules` does the same in a generator for every module: 8 times slower
            path, module = left.pop()
            if id(module) in names:
                continue
            name = path or type(getattr(module, "_orig_mod", module)).__name__
            names[id(module)] = name
            modules.append(module)
            peers.setdefault(type(module), []).append(name)
            for own, child in reversed(module._modules.items()):
                if child is not None:
                    inner = path if own == "_orig_mod" else f"{path}.{own}" if path else own
                    left.append((inner, child))
        return cls(tuple(modules), names, peers)


def module_names(model: nn.Module) -> dict[int, str]:
    """Path of every module by id; a model that is one module goes by its class name."""
    return ModuleTable.of(model).names


def require_module(model: Any) -> None:
    """Require a module where a model is expected.

    Raises:
        TypeError: ``model`` is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: is {type(model).__name__}; expected a torch.nn.Module")
