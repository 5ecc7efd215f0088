"""A second forward pass that leaves no trace: random state and buffers are put back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["is_compiled", "replay"]


def is_compiled(model: nn.Module) -> bool:
    """Whether a model, or a module in it, runs compiled code."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def replay(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
) -> None:
    """Call a model eagerly and without gradients, and put everything back.

    Args:
        model: To be called.
        args: For it.
        kwargs: For it.
        training: In the mode that it is in; else in eval mode.
    """
    with ExitStack() as stack:
        stack.enter_context(_unchanged(model))
        stack.enter_context(torch.random.fork_rng(devices=_devices(model)))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        if not training:
            stack.enter_context(_evaluating(model))
        model(*args, **kwargs)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what the pass wrote to buffers, such as running means."""
    buffers = [(held, held.detach().clone()) for held in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.data.copy_(before)  # past autograd: a graph may hold the buffer


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _devices(model: nn.Module) -> list[torch.device]:
    found = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    return sorted(found, key=str)
