"""Running a model without leaving a trace: eval mode, fixed random state, gradients on request."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attncheck.model_checks.altering import real_positions
from attncheck.model_checks.subject import ModelSubject, Stream

__all__ = ["call", "embeddings_of", "evaluating", "input_gradient", "output", "random_state"]


@contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Eval mode; afterwards every submodule is in the mode it was in. Warnings are not ours."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Fix the random state, and put back what it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def call(subject: ModelSubject, *, seed: int = 0, gradients: bool = False, **extra: Any) -> Any:
    """Call the model on the subject's inputs; return what it returns."""
    with evaluating(subject.model, gradients=gradients), random_state(seed, subject.device):
        return subject.model(**{**subject.inputs, **extra})


def output(
    subject: ModelSubject, *, seed: int = 0, gradients: bool = False, **extra: Any
) -> Tensor:
    """Run the model and return the judged tensor, ``(batch, position, feature)``.

    An output that does not follow the positions becomes ``(batch, 1, feature)``. At positions of
    padding it is 0: models return there what they like, NaN too.
    """
    returned = call(subject, seed=seed, gradients=gradients, **extra)
    return shaped(subject, returned)


def shaped(subject: ModelSubject, returned: Any, length: int | None = None) -> Tensor:
    """Read the judged tensor out of what the model returned, in float32 at least."""
    length = subject.length if length is None else length
    held = subject.reader(returned, subject.batch, length)
    held = held.to(torch.promote_types(held.dtype, torch.float32))
    if held.ndim <= 2 or held.shape[1] != length or not subject.is_sequence:
        return held.flatten(1)[:, None]
    held = held.flatten(2)
    real = real_positions(subject, subject.stream).to(held.device)
    return held if held.shape[:2] != real.shape else held.masked_fill(~real[..., None], 0)


@contextmanager
def embeddings_of(
    subject: ModelSubject, streams: list[Stream], change: Callable[[Tensor], Tensor]
) -> Iterator[list[tuple[str, Tensor]]]:
    """Pass what enters the model in place of token ids through a function.

    Token ids have no gradient; the vectors that embeddings return for them have. Embeddings are
    found by what they are called with. Yields ``(stream, vectors)`` as they are met.
    """
    met: list[tuple[str, Tensor]] = []
    ids = {s.name: subject.inputs[s.name] for s in streams}

    def hook(_: nn.Module, args: tuple[Any, ...], found: Tensor) -> Tensor | None:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or given.is_floating_point():
            return None
        for name, wanted in ids.items():
            same = given.shape == wanted.shape and found.shape[:2] == wanted.shape[:2]
            if same and bool((given == wanted).all()):
                changed = change(found)
                met.append((name, changed))
                return changed
        return None

    modules = [m for m in subject.model.modules() if isinstance(m, nn.Embedding)]
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def input_gradient(
    subject: ModelSubject, stream: Stream, kept: Tensor, **extra: Any
) -> Tensor | str:
    """Return how much of some outputs' gradient reaches each input position.

    Args:
        subject: The model and its inputs.
        stream: Whose positions are asked about.
        kept: Bool ``(batch, position)``: the outputs whose gradient is taken, weighted at random.
        extra: Further arguments of the model.

    Returns:
        ``(batch, position)``, the largest absolute gradient; or why there is none.
    """
    leaves: list[tuple[str, Tensor]] = []

    def leaf(found: Tensor) -> Tensor:
        return found.detach().requires_grad_()

    held = subject.inputs[stream.name]
    with contextlib.ExitStack() as stack:
        if held.is_floating_point():
            first = leaf(held.clone())
            leaves.append((stream.name, first))
            subject = subject.having(**{stream.name: first})
        else:
            leaves = stack.enter_context(embeddings_of(subject, [stream], leaf))
        try:
            found = output(subject, gradients=True, **extra)
        except Exception as error:
            return f"not available ({type(error).__name__})"
    if not leaves:
        return "not available (no embedding is called with the token ids)"
    if not found.requires_grad:
        return "not available (the output has no gradient)"
    return _reaching(found, kept, [vectors for _, vectors in leaves], held.shape[:2])


def _reaching(found: Tensor, kept: Tensor, leaves: list[Tensor], shape: Any) -> Tensor | str:
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(found.shape, generator=random, dtype=found.dtype).to(found.device)
    total = (found * weights)[kept.to(found.device)].sum()
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    held = [g for g in gradients if g is not None]
    if not held:
        return "not available (no gradient reaches the inputs)"
    sizes = [g.abs().float().reshape(*shape, -1).amax(-1) for g in held]
    return torch.stack(sizes).amax(0).detach()
