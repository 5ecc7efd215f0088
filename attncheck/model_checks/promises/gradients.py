"""Every head learns: its projections get a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Unpack

import torch
from torch import Tensor, nn

from attncheck.attention import LayerAttention
from attncheck.checks.door import raise_if_failed
from attncheck.checks.finding import Finding, Offender
from attncheck.checks.text import VERDICT
from attncheck.errors import CaptureError
from attncheck.model_checks.captured import attention_of
from attncheck.model_checks.conclude import Words
from attncheck.model_checks.outputs import tensors_of
from attncheck.model_checks.registry import register
from attncheck.model_checks.running import call
from attncheck.model_checks.subject import ModelSubject, SubjectOptions

__all__ = ["assert_gradients_flow", "judge_gradients"]

CACHE: Final = 4
"""Axes of a cache: batch, head, position, feature."""

WORDS: Final = Words(
    check="gradients_flow",
    broken="no gradient",
    holds="gradients flow",
    rule="every head's projections have a finite gradient that is not 0",
    hint="look for .detach(), torch.no_grad(), .data, or an in-place constant on that path",
)


def assert_gradients_flow(
    model: nn.Module | ModelSubject, inputs: Any = None, **options: Unpack[SubjectOptions]
) -> None:
    """Assert that every head's query, key and value projections get a gradient.

    The gradient of a random projection of the output is taken. The weights of each module that
    computes attention are read in blocks of one head: none may be without gradient, 0 or NaN.
    Parameters that are exactly 0, as gates are at the start of training, are moved off 0 for the
    length of the check. Frozen parameters are left out.

    Args:
        model: Any module with attention that can be captured, or a `ModelSubject`.
        inputs: What it is called with. Default, for Hugging Face models: small random ones.
        options: What cannot be found out from the model, see `ModelSubject`.

    Raises:
        CheckFailure: A head's projection gets no gradient.
        CaptureError: No attention was found.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=8, batch_first=True)
        >>> assert_gradients_flow(layer, torch.randn(2, 6, 8))
    """
    __tracebackhide__ = True
    raise_if_failed(judge_gradients(ModelSubject.of(model, inputs, **options)))


def _applies(subject: ModelSubject) -> str:
    if not any(p.requires_grad for p in subject.model.parameters()):
        return "all parameters are frozen"
    try:
        attention_of(subject)
    except CaptureError:
        return "no attention was captured"
    return ""


@register(
    "gradients-flow",
    reason="a head that gets no gradient never learns",
    source="Michel et al. 2019 on heads that do nothing; a .detach() left in",
    applies=_applies,
    tags=("gradients",),
)
def judge_gradients(subject: ModelSubject) -> Finding:
    """Find heads without gradient; arguments as `assert_gradients_flow`."""
    # With one key, a softmax has nothing to choose, and query and key no gradient.
    layers = [layer for layer in attention_of(subject) if layer.n_key > 1]
    projections = {
        id(p): (name, p, layer) for layer in layers for name, p in _owned(subject, layer)
    }
    chosen = [(name, p, layer) for name, p, layer in projections.values()]
    with _no_zeros(subject.model):
        held = _gradients(subject, [parameter for _, parameter, _ in chosen])
    offenders: list[Offender] = []
    blocks = 0
    for (name, parameter, layer), gradient in zip(chosen, held, strict=True):
        count, wrong = _judged(name, parameter, gradient, layer)
        blocks += count
        offenders += wrong
    return _finding(subject, offenders, blocks, len(layers))


def _gradients(subject: ModelSubject, parameters: list[Tensor]) -> list[Tensor | None]:
    """Gradient of what the model returns, weighted at random: of all but caches, or what is judged.

    A cache returns keys and values as they are, and would give them a gradient by itself.
    """
    returned = call(subject, gradients=True)
    found = [subject.reader(returned, subject.batch, subject.length)]
    if subject.reader.choice is None:
        rest = (t for t in tensors_of(returned) if t.is_floating_point() and t.ndim < CACHE)
        found += [t for t in rest if t is not found[0]]
    found = [t for t in found if t.requires_grad]
    if not (found and parameters):
        return [None] * len(parameters)
    random = torch.Generator().manual_seed(0)
    total = torch.zeros((), device=found[0].device)
    for held in found:
        weights = torch.randn(held.shape, generator=random).to(held.device)
        total = total + (held.float().nan_to_num(0) * weights).sum()
    return list(torch.autograd.grad(total, parameters, allow_unused=True))


def _finding(subject: ModelSubject, offenders: list[Offender], blocks: int, layers: int) -> Finding:
    names = sorted({offender.head for offender in offenders})
    verdict = f"{WORDS.holds}: {blocks} projections of heads"
    if offenders:
        verdict = f"{WORDS.broken}: {len(offenders)} of {blocks} projections"
    facts = [("attention", f"{layers} modules captured")]
    if names:
        facts.append(("layer", f"{names[0]} is the first by name"))
    return Finding(
        check=WORDS.check,
        passed=not offenders,
        verdict=verdict[:VERDICT],
        name=subject.name,
        subject=subject.describe(),
        rule=WORDS.rule,
        facts=tuple(facts),
        columns=("head", "gradient") if offenders else (),
        offenders=tuple(offenders),
        n_passed=blocks - len(offenders),
        n_total=blocks,
        unit="projections",
        hints=(WORDS.hint,) if offenders else (),
    )


def _owned(subject: ModelSubject, layer: LayerAttention) -> Iterator[tuple[str, Tensor]]:
    """Weights of the projections in a module: matrices, no biases (a key's has none by theory).

    Nor tables of embeddings, whose rows get a gradient only for tokens of the input.
    """
    module = _module_of(subject.model, layer.name)
    tables = {
        id(inner.weight)
        for inner in module.modules()
        if isinstance(inner, nn.Embedding | nn.EmbeddingBag)
    }
    scores = ("bias", "relative", "position", "norm", "sink", "gate", "dist")
    for name, parameter in module.named_parameters():
        matrix = parameter.ndim == 2 and min(parameter.shape) > 1 and parameter.requires_grad
        if id(parameter) in tables or any(word in name.lower() for word in scores):
            continue
        if matrix:
            yield f"{layer.name}.{name}", parameter


def _module_of(model: nn.Module, name: str) -> nn.Module:
    """The module that a layer is named after: by its path, or the model itself by its class."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return model


def _judged(
    name: str, parameter: Tensor, gradient: Tensor | None, layer: LayerAttention
) -> tuple[int, list[Offender]]:
    """Judge a weight in blocks of one head, along its longer side or its rows."""
    heads = layer.n_heads
    if gradient is None:
        return 1, [Offender(name, ("all",), "none")]
    if not bool(gradient.isfinite().all()):
        return 1, [Offender(name, ("all",), "not finite")]
    axis = 0 if parameter.shape[0] >= parameter.shape[1] else 1
    size = _head_size(parameter, heads, layer.n_key_value_heads, axis)
    if size == 0:
        dead = not bool(gradient.any())
        return 1, [Offender(name, ("all",), "0")] if dead else []
    blocks = gradient.movedim(axis, 0).reshape(-1, size, gradient.shape[1 - axis])
    dead_blocks = (~blocks.flatten(1).any(1)).nonzero().flatten().tolist()
    return len(blocks), [Offender(name, (f"block {b}",), "0") for b in dead_blocks]


def _head_size(parameter: Tensor, heads: int, kv_heads: int, axis: int) -> int:
    """Rows of one head; 0 where the weight is not made of heads."""
    long = parameter.shape[axis]
    for count in (3 * heads, heads + 2 * kv_heads, heads, kv_heads):
        if long % count == 0 and long // count > 1:
            return int(long // count)
    return 0


@contextmanager
def _no_zeros(model: nn.Module) -> Iterator[None]:
    """Move parameters that are exactly 0 off it, and put them back."""
    random = torch.Generator().manual_seed(0)
    held: list[tuple[nn.Parameter, Tensor]] = []
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not bool(parameter.any()):
                held.append((parameter, parameter.detach().clone()))
                noise = 0.05 * torch.randn(parameter.shape, generator=random)
                parameter.copy_(noise.to(parameter.device, parameter.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in held:
                parameter.copy_(before)
