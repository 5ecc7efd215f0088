"""How far an output may lie from the float64 oracle: the rule, in one place.

``allowed = NATIVE * (largest error of the same-dtype reference) + FLOOR * eps * magnitude``.

The first term is the rule of the suites that kernel authors trust: plain arithmetic in the input's
own dtype makes some error against float64, and an implementation may make a small multiple of it
(flash-attention's tests: 2 for outputs, 3 for gradients; PyTorch's: 1 to 12). float32 needs the
second term, because the reference's error is nearly zero on easy inputs while correct code reached
9 times it. The floor is a running error bound, element by element. An error of ``eps * |logit|`` in
a logit moves an output by at most that times the spread of the values under the weights, and
summing rounds ``weights @ |value|``; ``magnitude`` is the sum of both, and the backward formula in
absolute values for gradients. Weights made as ``exp(score - logsumexp)`` share the rounding of the
row's log-sum, so a little of ``|logit| * |output|`` joins them. A row that looks at one key only
gets a small allowance, however large its logits.

Where the rounding of a logit is not small against 1 (half precision, logits of hundreds) the first
order says too little: two keys 3 apart change places when each logit may be off by 2. There the
floor gets what moving each weight's odds by ``exp(2 eps |logit|)`` adds, see `loosened`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from attncheck.conformance.case import Inputs
from attncheck.conformance.oracle import PLAIN, Rules, attend

__all__ = [
    "FLOOR",
    "NATIVE",
    "Expected",
    "Reference",
    "expect",
    "expect_gradients",
    "logit_size",
    "worst",
]

NATIVE: Final = 3.0
"""Multiple of the same-dtype reference's largest error."""

FLOOR: Final[Mapping[torch.dtype, float]] = {
    torch.float64: 24.0,  # the oracle rounds as much
    torch.float32: 8.0,
    torch.float16: 1.0,
    torch.bfloat16: 1.0,
}
"""Multiple of ``eps * magnitude`` by dtype; half precision relies on the reference's error."""

NORMALISER: Final = 0.125
"""Share of a logit's rounding that a whole row may be off by: ``exp(score - logsumexp)``."""

COARSE: Final = 0.25
"""Rounding of a logit from which the first order in it is not enough; float32 never gets there."""

NEGLIGIBLE: Final = 60
"""How far below the largest score of its row a score leaves no trace in the output."""

HALF: Final = (torch.float16, torch.bfloat16)

TINY: Final = {torch.float16: 1.2e-7}
"""Spacing near zero where it is coarse: half precision rounds to it whatever the magnitude."""


@dataclass(frozen=True)
class Expected:
    """What the oracle gives for a quantity, and how far from it is accepted, both float64."""

    value: Tensor
    allowed: Tensor


@dataclass(frozen=True)
class Worst:
    """The worst element of a comparison: how many times its allowance it is off."""

    ratio: float
    index: tuple[int, ...]
    expected: float
    got: float
    allowed: float
    count: int
    total: int


def logit_size(inputs: Inputs, scores: Tensor) -> Tensor:
    """Return the size of each row's logits, ``(..., head, query, 1)``: what scales its rounding.

    Counted are the keys whose weight is not negligible, with the sizes of the vectors that make
    them; a bias at the bottom of the dtype's range absorbs the score and counts as nothing.
    """
    if scores.shape[-1] == 0:
        return torch.ones_like(scores[..., :1])
    peak = scores.amax(-1, keepdim=True)
    counts = (scores > peak - NEGLIGIBLE) & (scores.abs() < 1e30)
    largest = scores.abs().masked_fill(~counts, 0).amax(-1, keepdim=True)
    scale = inputs.flags.get("scale")
    size = inputs.query.shape[-1]
    factor = size**-0.5 if scale is None else abs(float(scale))
    lengths = inputs.query.double().norm(dim=-1, keepdim=True)
    longest = inputs.key.double().norm(dim=-1).amax(-1)[..., None, None]
    if longest.dim() > 2 and longest.shape[-3] not in (1, lengths.shape[-3]):
        longest = longest.repeat_interleave(lengths.shape[-3] // longest.shape[-3], -3)
    found: Tensor = 1 + largest + factor * lengths * longest / size**0.5
    return found


def _of_small_weights(weights: Tensor, scores: Tensor, logits: Tensor) -> Tensor:
    """Return the size of each logit: its row's, its own where its weight is below ``exp(-60)``.

    Nothing else stands in such a key's gradients, so that its weight's own digits are seen there.
    """
    if scores.shape[-1] == 0:
        return logits
    small = (weights > 0) & (scores < scores.amax(-1, keepdim=True) - NEGLIGIBLE)
    return torch.maximum(logits, scores.abs().masked_fill(~small, 0))


def terms_of(inputs: Inputs) -> float:
    """Return what summing over keys adds; half precision must sum in something wider."""
    n_key = inputs.key.shape[-2]
    return 1.0 if inputs.query.dtype in HALF else 1.0 + 0.5 * n_key**0.5 + n_key / 64


def loosened(weights: Tensor, logits: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return what each weight may move by beyond the first order, as logits are rounded.

    None where nothing does. A weight's odds ``w / (1 - w)`` change by the factor
    ``exp(2 eps |logit|)`` at most: its own logit rounded one way and all others the other way.
    """
    rounding = torch.finfo(dtype).eps * logits
    if not bool((rounding > COARSE).any()):
        return None
    # From the side that moves further: a weight beyond one half falls as its complement rises.
    small = torch.minimum(weights, 1 - weights).clamp_min(0)
    grown = 1 / (1 + (1 / small.clamp_min(1e-300) - 1) * torch.exp(-2 * rounding))
    first = 2 * rounding * weights * (1 - weights)
    return (grown - small - first).clamp_min(0) * ((rounding > COARSE) & (small > 0))


def expect(inputs: Inputs, rules: Rules = PLAIN) -> dict[str, Expected]:
    """Return what ``output`` and ``weights`` must be, and the allowance of each element."""
    return Reference(inputs, rules).values()


def expect_gradients(
    inputs: Inputs, direction: Tensor, rules: Rules = PLAIN
) -> dict[str, Expected]:
    """Return what the gradients of ``(output * direction).sum()`` must be, by argument."""
    return Reference(inputs, rules, grad=True).gradients(direction)


class Reference:
    """Exact and same-dtype arithmetic of one call, each computed once for values and gradients.

    Args:
        inputs: Tensors and flags of a call.
        rules: What an extension changes.
        grad: Whether gradients will be asked for.
    """

    def __init__(self, inputs: Inputs, rules: Rules = PLAIN, grad: bool = False) -> None:
        self.inputs, self.rules = inputs, rules
        self.dtype = inputs.query.dtype
        self.exact = _Run(inputs, torch.float64, rules, grad)
        wide = self.dtype == torch.float64  # then the two are the same
        self.native = self.exact if wide else _Run(inputs, self.dtype, rules, grad)

    @cached_property
    def logits(self) -> Tensor:
        """Size of each row's logits, ``(..., head, query, 1)``."""
        return logit_size(self.inputs, self.exact.found[2])

    @cached_property
    def loose(self) -> Tensor | None:
        """What each weight may move by beyond the first order."""
        return loosened(self.exact.found[1], self.logits, self.dtype)

    def values(self, with_weights: bool = True) -> dict[str, Expected]:
        """Return what ``output``, and ``weights`` if asked for, must be."""
        with torch.no_grad():
            found = {"output": self._output()}
            return found | {"weights": self._weights()} if with_weights else found

    def _output(self) -> Expected:
        output, weights, _ = self.exact.found
        value = _heads_of(self.inputs.value.double(), self.inputs)
        spread = (weights @ value.square() - output.square()).clamp_min(0).sqrt()
        magnitude = terms_of(self.inputs) * (weights @ value.abs()) + self.logits * spread
        magnitude = magnitude + NORMALISER * self.logits * output.abs()
        if self.loose is not None:
            mass = self.loose.sum(-1, keepdim=True)
            away = self.loose @ value.square() + output.square() * mass
            away = (away - 2 * output * (self.loose @ value)).clamp_min(0)
            magnitude = magnitude + (mass * away).sqrt() / self._floor
        return self._allowing(output, self.native.found[0], magnitude)

    def _weights(self) -> Expected:
        weights = self.exact.found[1]
        magnitude = terms_of(self.inputs) * weights + 2 * self.logits * weights * (1 - weights)
        # A weight far below eps is lost in any output: its own digits are not judged.
        magnitude = magnitude + 0.01 + NORMALISER * self.logits * weights
        if self.loose is not None:
            magnitude = magnitude + self.loose / self._floor
        return self._allowing(weights, self.native.found[1], magnitude)

    def gradients(self, direction: Tensor) -> dict[str, Expected]:
        """Return what the gradients of ``(output * direction).sum()`` must be, by argument."""
        exact, native = (run.gradients(direction) for run in (self.exact, self.native))
        floors = self._gradient_magnitudes(direction)
        return {name: self._allowing(exact[name], native[name], floors[name]) for name in exact}

    @property
    def _floor(self) -> float:
        return FLOOR[self.dtype] * torch.finfo(self.dtype).eps

    def _allowing(self, exact: Tensor, native: Tensor, magnitude: Tensor) -> Expected:
        floor = self._floor * magnitude
        error = 0.0 if native is exact else NATIVE * _largest(native.double() - exact)
        return Expected(exact, floor + error + _tiny(self.dtype))

    def _gradient_magnitudes(self, direction: Tensor) -> dict[str, Tensor]:
        """Return the running error bound of each gradient: the backward formula, absolute."""
        inputs, (_, weights, scores) = self.inputs, self.exact.found
        with torch.no_grad():
            size = _of_small_weights(weights, scores, self.logits) + terms_of(inputs) - 1
            loose = loosened(weights, size, self.dtype)
            if loose is not None:
                weights = weights + loose / COARSE
            key, value = (_heads_of(x.double(), inputs).abs() for x in (inputs.key, inputs.value))
            scale = inputs.flags.get("scale")
            factor = inputs.query.shape[-1] ** -0.5 if scale is None else abs(float(scale))
            toward = direction.double().abs()
            through = weights * (toward @ value.mT)
            inner = (through + weights * through.sum(-1, keepdim=True)) * size
            landing = inner + _landing_on_maxima(inner, scores, self.dtype)
            found = {
                "query": factor * inner @ key,
                "key": _fold_heads(factor * landing.mT @ inputs.query.double().abs(), inputs.key),
                "value": _fold_heads((weights * size).mT @ toward, inputs.value),
            }
            mask = inputs.mask
            if mask is not None and mask.dtype != torch.bool:
                found["attn_mask"] = landing.sum_to_size(mask.shape)
            return found


class _Run:
    """The oracle's arithmetic in one dtype: ``found`` is output, weights and scores."""

    def __init__(self, inputs: Inputs, dtype: torch.dtype, rules: Rules, grad: bool) -> None:
        self.leaves: dict[str, Tensor] = {}
        if grad:
            self.leaves = {
                name: tensor.detach().to(dtype, copy=True).requires_grad_()
                for name, tensor in inputs.tensors.items()
                if tensor.dtype != torch.bool
            }
            mask = self.leaves.get("attn_mask", inputs.mask)
            query, key, value = (self.leaves[name] for name in ("query", "key", "value"))
            inputs = Inputs(query, key, value, mask, inputs.flags)
        with torch.set_grad_enabled(grad):
            self.output, weights, scores = attend(inputs, dtype, rules)
        self.found = (self.output.detach(), weights.detach(), scores.detach())

    def gradients(self, direction: Tensor) -> dict[str, Tensor]:
        """Return the gradients of ``(output * direction).sum()`` by argument name."""
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(
            self.output, leaves, direction.to(self.output.dtype), allow_unused=True,
            retain_graph=True,
        )  # fmt: skip
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(self.leaves.items(), found, strict=True)
        }


def gradients(inputs: Inputs, direction: Tensor, rules: Rules) -> dict[str, Tensor]:
    """Return gradients of the oracle, by argument name."""
    return _Run(inputs, torch.float64, rules, grad=True).gradients(direction)


def _landing_on_maxima(inner: Tensor, scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what a row's rounding adds at one key, where autograd goes through a running maximum.

    The derivative by the maximum is zero, computed as a sum over the row that leaves its rounding:
    in half precision that of terms rounded apart and summed in something wider.
    """
    if dtype in HALF:
        left = 0.3 * inner.square().sum(-1, keepdim=True).sqrt()
    else:
        left = inner.sum(-1, keepdim=True) / 16
    return left * (scores > -torch.inf)


def worst(got: Tensor, expected: Expected) -> Worst | None:
    """Return the element furthest out of its allowance, or None if all are within."""
    got64 = got.detach().to(expected.value.device, torch.float64)
    error = (got64 - expected.value).abs()
    allowed = expected.allowed.expand_as(error)
    bad = ~(error <= allowed)
    if not bool(bad.any()):
        return None
    ratio = torch.where(error.isfinite(), error / allowed.clamp_min(1e-300), torch.inf)
    ratio = ratio.masked_fill(~bad, -1)
    flat = int(ratio.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape))
    return Worst(
        ratio=float(ratio.flatten()[flat]),
        index=index,
        expected=float(expected.value[index]),
        got=float(got64[index]),
        allowed=float(allowed[index]),
        count=int(bad.sum()),
        total=bad.numel(),
    )


def _heads_of(tensor: Tensor, inputs: Inputs) -> Tensor:
    """Repeat key-value heads so that there is one for each query head."""
    if tensor.dim() < 3 or tensor.shape[-3] in (0, inputs.query.shape[-3]):
        return tensor
    return tensor.repeat_interleave(inputs.query.shape[-3] // tensor.shape[-3], -3)


def _fold_heads(tensor: Tensor, like: Tensor) -> Tensor:
    """Sum the query heads of each key-value head."""
    if tensor.shape == like.shape:
        return tensor
    shape = (*like.shape[:-2], -1, *tensor.shape[-2:])
    return tensor.reshape(shape).sum(-3)


def _largest(error: Tensor) -> float:
    """Return the largest error; where the same-dtype reference overflows it excuses nothing."""
    finite = error.abs().nan_to_num(0.0, posinf=0.0)
    return float(finite.amax()) if error.numel() else 0.0


def _tiny(dtype: torch.dtype) -> float:
    return TINY.get(dtype, float(torch.finfo(dtype).tiny))
