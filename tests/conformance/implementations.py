"""Correct implementations of attention, by many hands: none of them may fail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncheck.conformance import Capabilities

__all__ = ["IMPLEMENTATIONS", "Implementation"]

SCALED_MASK = "torch's CPU kernel hides future keys before it scales: -inf * scale"
CPU_KERNEL = {
    "scale-zero-causal": SCALED_MASK,
    "scale-negative-causal": SCALED_MASK,
}
"""Real bugs of torch 2.13's fused CPU kernel, by property; docs/conformance.md has the scripts."""


@dataclass(frozen=True)
class Implementation:
    """A correct implementation, with what it declares and what is known to fail."""

    function: Callable[..., Any]
    capabilities: Capabilities = field(default_factory=Capabilities)
    known: Mapping[str, str] = field(default_factory=dict)
    returns_weights: bool = False


def backend(chosen: SDPBackend) -> Callable[..., Tensor]:
    def attention(*args: Any, **kwargs: Any) -> Tensor:
        with sdpa_kernel(chosen):
            return F.scaled_dot_product_attention(*args, **kwargs)

    attention.__name__ = f"torch_{chosen.name.lower()}"
    return attention


def repeat_heads(query: Tensor, key: Tensor, value: Tensor, gqa: bool) -> tuple[Tensor, Tensor]:
    if not gqa:
        return key, value
    group = query.shape[-3] // key.shape[-3]
    return key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)


def bias_of(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, dtype: torch.dtype
) -> Tensor:
    n_query, n_key = query.shape[-2], key.shape[-2]
    bias = torch.zeros(n_query, n_key, dtype=dtype, device=query.device)
    if is_causal:
        future = torch.ones(n_query, n_key, dtype=torch.bool, device=query.device).triu(1)
        bias = bias.masked_fill(future, -torch.inf)
    if attn_mask is None:
        return bias
    if attn_mask.dtype == torch.bool:
        return bias.masked_fill(~attn_mask, -torch.inf)
    return bias + attn_mask.to(dtype)


def einsum_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False, *, weights_too: bool = False,
) -> Any:  # fmt: skip
    """The textbook, in the inputs' dtype."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    scores = torch.einsum("...qd,...kd->...qk", query, key) * factor
    scores = scores + bias_of(query, key, attn_mask, is_causal, scores.dtype)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)
    dropped = F.dropout(weights, dropout_p)
    output = torch.einsum("...qk,...kd->...qd", dropped, value)
    return (output, weights) if weights_too else output


def einsum_with_weights(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    found = einsum_attention(*args, **kwargs, weights_too=True)
    assert isinstance(found, tuple)
    return found


def float64_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """Accumulates in float64, returns the inputs' dtype."""
    mask = kwargs.pop("attn_mask", None)
    mask = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    found = einsum_attention(query.double(), key.double(), value.double(), mask, **kwargs)
    assert isinstance(found, Tensor)
    return found.to(query.dtype)


def upcast_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """Half precision in float32, as kernels on accelerators do."""
    if query.dtype in (torch.float32, torch.float64):
        return einsum_attention(query, key, value, **kwargs)  # type: ignore[no-any-return]
    mask = kwargs.pop("attn_mask", None)
    mask = mask.float() if mask is not None and mask.dtype != torch.bool else mask
    found = einsum_attention(query.float(), key.float(), value.float(), mask, **kwargs)
    assert isinstance(found, Tensor)
    return found.to(query.dtype)


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False, *, block: int = 32,
) -> Tensor:  # fmt: skip
    """Online softmax over blocks of keys, with a running maximum and sum."""
    if dropout_p:
        raise NotImplementedError("no dropout")
    key, value = repeat_heads(query, key, value, enable_gqa)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    bias = bias_of(query, key, attn_mask, is_causal, wide)
    scaled = query.to(wide) * factor
    shape = query.shape[:-1]
    peak = torch.full((*shape, 1), -torch.inf, dtype=wide, device=query.device)
    total = torch.zeros((*shape, 1), dtype=wide, device=query.device)
    output = torch.zeros((*shape, value.shape[-1]), dtype=wide, device=query.device)
    for start in range(0, key.shape[-2], block):
        end = start + block
        scores = scaled @ key[..., start:end, :].to(wide).mT
        scores = scores + (bias[..., start:end] if bias.shape[-1] > 1 else bias)
        new = torch.maximum(peak, scores.amax(-1, keepdim=True))
        safe = new.masked_fill(new == -torch.inf, 0)
        correction = torch.exp(peak - safe)
        powers = torch.exp(scores - safe)
        total = total * correction + powers.sum(-1, keepdim=True)
        output = output * correction + powers @ value[..., start:end, :].to(wide)
        peak = new
    return (output / total.masked_fill(total == 0, 1)).to(query.dtype)


def split_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    *, splits: int = 3,
) -> Tensor:  # fmt: skip
    """As decoding kernels: keys in splits, base 2, powers rounded to half, merged by their sums."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    base = math.log2(math.e)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    bias = bias_of(query, key, attn_mask, is_causal, wide)
    bias = bias.expand(*bias.shape[:-1], key.shape[-2])
    size = max(-(-key.shape[-2] // splits), 1)
    outputs = [query.new_zeros((*query.shape[:-1], value.shape[-1]), dtype=wide)]
    sums = [query.new_zeros((*query.shape[:-1], 1), dtype=wide)]
    peaks = [query.new_full((*query.shape[:-1], 1), -torch.inf, dtype=wide)]
    for start in range(0, key.shape[-2], size):
        part = slice(start, start + size)
        scores = query.to(wide) @ (key[..., part, :].to(wide) * factor).mT + bias[..., part]
        peaks.append(scores.amax(-1, keepdim=True))
        powers = torch.exp2(base * (scores - peaks[-1].masked_fill(peaks[-1] == -torch.inf, 0)))
        sums.append(powers.sum(-1, keepdim=True))
        outputs.append(powers.to(query.dtype).to(wide) @ value[..., part, :].to(wide))
    highest = torch.stack(peaks).amax(0)
    safe = highest.masked_fill(highest == -torch.inf, 0)
    shares = torch.exp2(base * (torch.stack(peaks) - safe))
    total = (shares * torch.stack(sums)).sum(0)
    merged = (shares * torch.stack(outputs)).sum(0) / total.masked_fill(total == 0, 1)
    return merged.to(query.dtype)


def numpy_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """NumPy, in the inputs' dtype; no bfloat16 (torch raises TypeError), no gradient."""
    if dropout_p:
        raise NotImplementedError("no dropout")
    q, k, v = (x.detach().numpy() for x in (query, key, value))
    if enable_gqa:
        group = q.shape[-3] // k.shape[-3]
        k, v = np.repeat(k, group, -3), np.repeat(v, group, -3)
    factor = np.asarray(q.shape[-1] ** -0.5 if scale is None else float(scale), dtype=q.dtype)
    scores = (q * factor) @ np.swapaxes(k, -1, -2)
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    if attn_mask is not None:
        mask = attn_mask.detach().numpy()
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    scores = scores.astype(q.dtype)
    peak = scores.max(-1, keepdims=True, initial=-np.inf)
    powers = np.exp(scores - np.where(np.isneginf(peak), 0, peak))
    total = powers.sum(-1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    return torch.from_numpy(np.ascontiguousarray(weights @ v)).to(query.dtype)


class _ByHand(torch.autograd.Function):
    """A backward pass written out, as a kernel's author writes it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, factor: float
    ) -> Tensor:
        scores = query @ key.mT * factor + bias
        empty = (scores == -torch.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(empty, 0), -1).masked_fill(empty, 0)
        ctx.save_for_backward(query, key, value, weights)
        ctx.factor, ctx.bias = factor, bias.shape
        return weights @ value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, weights = ctx.saved_tensors
        towards = grad @ value.mT
        inner = weights * (towards - (towards * weights).sum(-1, keepdim=True))
        return (
            inner @ key * ctx.factor,
            inner.mT @ query * ctx.factor,
            weights.mT @ grad,
            inner.sum_to_size(ctx.bias),
            None,
        )


def by_hand_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Has no argument for dropout: a TypeError says so."""
    key, value = repeat_heads(query, key, value, enable_gqa)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    found = _ByHand.apply(query, key, value, bias, factor)
    assert isinstance(found, Tensor)
    return found


def flex(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """`flex_attention`, not compiled; masks become its score modification."""
    from torch.nn.attention.flex_attention import flex_attention

    if dropout_p or query.dim() != 4:
        raise NotImplementedError("4-D inputs, no dropout")
    if attn_mask is not None and attn_mask.requires_grad:
        raise NotImplementedError("no gradient of a mask")
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    full = None if attn_mask is None else attn_mask.expand(shape)

    def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if is_causal:
            score = torch.where(i >= j, score, -torch.inf)
        if full is None:
            return score
        here = full[b, h, i, j]
        return torch.where(here, score, -torch.inf) if here.dtype == torch.bool else score + here

    factor = None if scale is None else float(scale)
    found = flex_attention(query, key, value, score_mod=modify, scale=factor, enable_gqa=enable_gqa)
    assert isinstance(found, Tensor)
    return found


def multi_head(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`multi_head_attention_forward` with identity projections and one shared head size."""
    if query.dim() != 4 or enable_gqa or scale is not None or query.shape[-1] != value.shape[-1]:
        raise NotImplementedError("4-D, equal heads and sizes, default scale")
    batch, heads, n_query, size = query.shape
    n_key, width = key.shape[2], heads * size
    if 0 in (batch, heads, n_query, n_key, size) or width > 2048:
        raise NotImplementedError("no empty axes, a width of at most 2,048")
    bias = bias_of(query, key, attn_mask, is_causal, query.dtype)
    bias = bias.expand(batch, heads, n_query, n_key).reshape(batch * heads, n_query, n_key)
    if bool((bias == -torch.inf).all(-1).any()):
        raise NotImplementedError("rows without keys give NaN")
    flat = [x.permute(2, 0, 1, 3).reshape(-1, batch, width) for x in (query, key, value)]
    eye = torch.eye(width, dtype=query.dtype)
    output, weights = F.multi_head_attention_forward(
        *flat, width, heads, None, None, None, None, False, dropout_p, eye, None,
        training=dropout_p > 0, need_weights=True, attn_mask=bias,
        use_separate_proj_weight=True, q_proj_weight=eye, k_proj_weight=eye, v_proj_weight=eye,
        average_attn_weights=False,
    )  # fmt: skip
    assert weights is not None
    return output.reshape(n_query, batch, heads, size).permute(1, 2, 0, 3), weights


@lru_cache(maxsize=256)
def _module(width: int, heads: int, dtype: torch.dtype) -> torch.nn.MultiheadAttention:
    """Return a module whose projections change nothing."""
    module = torch.nn.MultiheadAttention(
        width, heads, bias=False, batch_first=True, dtype=dtype, device="meta"
    )
    eye = torch.eye(width, dtype=dtype)
    module.in_proj_weight = torch.nn.Parameter(eye.repeat(3, 1), requires_grad=False)
    module.out_proj.weight = torch.nn.Parameter(eye, requires_grad=False)
    return module


def multi_head_module(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The module `torch.nn.MultiheadAttention`, whose boolean mask says who is left out."""
    if query.dim() != 4 or enable_gqa or scale is not None or query.shape[-1] != value.shape[-1]:
        raise NotImplementedError("4-D, equal heads and sizes, default scale")
    batch, heads, n_query, size = query.shape
    if dropout_p or 0 in (*query.shape, *key.shape) or heads * size > 2048:
        raise NotImplementedError("no dropout, no empty axes, a width of at most 2,048")
    width, n_key = heads * size, key.shape[2]
    left_out = bias_of(query, key, attn_mask, is_causal, query.dtype)
    left_out = left_out.expand(batch, heads, n_query, n_key).flatten(0, 1)
    if bool((left_out == -torch.inf).all(-1).any()):
        raise NotImplementedError("rows without keys give NaN")
    if attn_mask is None or attn_mask.dtype == torch.bool:
        left_out = left_out == -torch.inf
    module = _module(width, heads, query.dtype)
    flat = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    output, weights = module(*flat, attn_mask=left_out, average_attn_weights=False)
    return output.unflatten(-1, (heads, size)).transpose(1, 2), weights


def hugging_face(name: str) -> Callable[..., Any]:
    """transformers' attention functions, which take a module and return (output, weights)."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.models.llama.modeling_llama import eager_attention_forward

        if query.dim() != 4 or dropout_p:
            raise NotImplementedError("4-D, no dropout")
        if query.shape[1] != key.shape[1] and not enable_gqa:
            raise ValueError("heads")
        groups = query.shape[1] // max(key.shape[1], 1)
        module = SimpleNamespace(num_key_value_groups=groups, training=False, is_causal=False)
        mask = attn_mask
        if is_causal or mask is not None:
            mask = bias_of(query, key, attn_mask, is_causal, query.dtype)
            mask = mask[(None,) * (4 - mask.dim())]
        factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
        run: Any = eager_attention_forward if name == "eager" else sdpa_attention_forward
        if name == "eager" and mask is not None and bool((mask == -torch.inf).all(-1).any()):
            raise NotImplementedError("rows without keys give NaN")
        output, weights = run(module, query, key, value, mask, scaling=factor, dropout=0.0)
        output = output.transpose(1, 2)
        return (output, weights) if name == "eager" else output

    attention.__name__ = f"transformers_{name}"
    return attention


NOT_EMPTY = Capabilities(empty=False)

IMPLEMENTATIONS: dict[str, Implementation] = {
    "torch default": Implementation(F.scaled_dot_product_attention, known=CPU_KERNEL),
    "torch math": Implementation(backend(SDPBackend.MATH)),
    "torch flash": Implementation(backend(SDPBackend.FLASH_ATTENTION), known=CPU_KERNEL),
    "einsum": Implementation(einsum_attention),
    "einsum with weights": Implementation(einsum_with_weights, returns_weights=True),
    "float64 accumulation": Implementation(float64_attention),
    "float32 accumulation": Implementation(upcast_attention),
    "tiled online softmax": Implementation(tiled_attention),
    "split keys, rounded powers": Implementation(split_attention),
    "NumPy": Implementation(numpy_attention),
    "backward by hand": Implementation(by_hand_attention),
    "flex_attention": Implementation(flex, NOT_EMPTY),
    "multi_head_attention_forward": Implementation(
        multi_head,
        known={"weights-before-dropout": "returns the weights after dropout"},
        returns_weights=True,
    ),
    "nn.MultiheadAttention": Implementation(multi_head_module, returns_weights=True),
    "transformers eager": Implementation(
        hugging_face("eager"),
        NOT_EMPTY,
        known={"accuracy-float64": "softmax is computed in float32 whatever the dtype"},
        returns_weights=True,
    ),
    "transformers sdpa": Implementation(hugging_face("sdpa"), NOT_EMPTY),
}
"""By name."""
