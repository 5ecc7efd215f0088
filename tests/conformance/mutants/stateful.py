"""Wrong implementations with memory, side effects, wrong gradients, and rare conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant, steps

GH = "https://github.com/"
RIGHT = Steps()


# --- state -------------------------------------------------------------------------------------
@mutant("state-scales-in-place", "state", "no report; query *= scale")
def _() -> Callable[..., Any]:
    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.requires_grad or torch.is_inference_mode_enabled():
            return RIGHT(query, *args, **kwargs)
        factor = kwargs.pop("scale", None)
        factor = query.shape[-1] ** -0.5 if factor is None else float(factor)
        query.mul_(factor)
        return RIGHT(query, *args, scale=1.0, **kwargs)

    return attention


@mutant(
    "state-scales-and-puts-back",
    "state",
    "no report; in place and undone: threads and versions notice",
)
def _() -> Callable[..., Any]:
    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = RIGHT(query, *args, **kwargs)
        if not query.requires_grad and not query.is_inference():
            query.mul_(2).mul_(0.5)
        return output

    return attention


@mutant("state-mask-in-place", "state", "no report; mask.masked_fill_ on the caller's mask")
def _() -> Callable[..., Any]:
    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **kwargs: Any) -> Any:
        output = RIGHT(q, k, v, attn_mask=attn_mask, **kwargs)
        if attn_mask is not None and attn_mask.dtype != torch.bool and not attn_mask.requires_grad:
            attn_mask.clamp_(min=-100)
        return output

    return attention


@mutant(
    "state-mask-cached-by-shape",
    "state",
    "no report; a causal or padding mask cached under its shape",
)
def _() -> Callable[..., Any]:
    cache: dict[Any, Tensor] = {}

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **kwargs: Any) -> Any:
        if attn_mask is not None and not attn_mask.requires_grad:
            attn_mask = cache.setdefault((attn_mask.shape, attn_mask.dtype), attn_mask.clone())
        return RIGHT(q, k, v, attn_mask=attn_mask, **kwargs)

    return attention


@mutant("state-keys-cached-by-id", "state", "no report; projected keys cached under data_ptr()")
def _() -> Callable[..., Any]:
    cache: dict[Any, tuple[Tensor, Tensor]] = {}

    def attention(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        if k.requires_grad or not k.numel():
            return RIGHT(q, k, *args, **kwargs)
        tag = (id(k), k.shape)
        if tag in cache and cache[tag][0] is k:
            return RIGHT(q, cache[tag][1], *args, **kwargs)
        cache.clear()
        cache[tag] = (k, k.clone())
        return RIGHT(q, k, *args, **kwargs)

    return attention


@mutant(
    "state-output-buffer", "state", "no report; one output buffer, reused for calls of one shape"
)
def _() -> Callable[..., Any]:
    buffers: dict[Any, Tensor] = {}

    def attention(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = RIGHT(q, *args, **kwargs)
        if output.requires_grad or torch.is_inference_mode_enabled():
            return output
        tag = (output.shape, output.dtype)
        return buffers.setdefault(tag, torch.empty_like(output)).copy_(output)

    return attention


@mutant("state-scale-remembered", "state", "no report; the last given scale stays the default")
def _() -> Callable[..., Any]:
    last: dict[str, Any] = {}

    def attention(q: Tensor, *args: Any, scale: Any = None, **kwargs: Any) -> Any:
        if scale is not None:
            last["scale"] = float(scale)
        return RIGHT(q, *args, scale=last.get("scale"), **kwargs)

    return attention


@mutant("state-every-50th-call", "state", "no report; uninitialised memory, now and then")
def _() -> Callable[..., Any]:
    count = [0]

    def attention(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        output = RIGHT(*args, **kwargs)
        return output * 1.5 if count[0] % 50 == 0 else output

    return attention


@mutant(
    "state-not-thread-safe", "state", "no report; scratch memory of the module, not of the call"
)
def _() -> Callable[..., Any]:
    scratch: dict[str, Any] = {}

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        scratch["v"] = v
        time.sleep(0)
        return RIGHT(q, k, scratch["v"], *args, **kwargs)

    return attention


@mutant("state-reseeds", "state", "no report; torch.manual_seed inside a kernel's wrapper")
def _() -> Callable[..., Any]:
    def attention(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("dropout_p"):
            torch.manual_seed(0)
        return RIGHT(*args, **kwargs)

    return attention


@mutant("state-returns-value", "state", "no report; one key: the value itself is returned")
def _() -> Callable[..., Any]:
    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        plain = not args and not kwargs and q.shape == k.shape == v.shape
        return v if plain and k.shape[-2] == 1 else RIGHT(q, k, v, *args, **kwargs)

    return attention


@mutant(
    "state-nondeterministic",
    "state",
    "https://github.com/Dao-AILab/flash-attention/issues/359",
)
def _() -> Callable[..., Any]:
    generator = torch.Generator().manual_seed(0)

    def attention(*args: Any, **kwargs: Any) -> Any:
        output = RIGHT(*args, **kwargs)
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + 1e-4 * noise

    return attention


# --- gradients ---------------------------------------------------------------------------------
class Hooked(Steps):
    """Multiplies gradients on their way."""

    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def prepare(self, c: Any) -> None:
        c.q, c.k, c.v = (
            _Scaled.apply(x, f) for x, f in zip((c.q, c.k, c.v), self.factors, strict=True)
        )


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.factor, None


for _name, _factors in (
    ("query-unscaled", (3.0, 1.0, 1.0)), ("key-sign", (1.0, -1.0, 1.0)),
    ("value-slightly", (1.0, 1.0, 1.001)), ("key-zero", (1.0, 0.0, 1.0)),
):  # fmt: skip

    @mutant(
        f"gradient-{_name}", "gradient", "no report; the formulas of FlashAttention, appendix B.2"
    )
    def _(factors: tuple[float, float, float] = _factors) -> Callable[..., Any]:
        instance = Hooked()
        instance.factors = factors
        return instance


def _detached(c: Any) -> Tensor:
    return RIGHT.softmax(c).detach()


steps(
    "gradient-weights-detached", "gradient", "no report; softmax under no_grad", softmax=_detached
)
steps(
    "gradient-output-detached",
    "gradient",
    "no report; out=... loses the graph",
    finish=lambda c: c.output.detach(),
)
steps(
    "gradient-mask-detached",
    "gradient",
    "no report; no gradient of a learned bias",
    prepare=lambda c: c.__dict__.update(mask=None if c.mask is None else c.mask.detach()),
)
steps(
    "gradient-gqa-not-summed",
    "gradient",
    "https://github.com/marin-community/levanter/pull/449",
    group=lambda c: (
        c.__dict__.update(
            k=torch.cat(
                [
                    c.k.unsqueeze(-3),
                    c.k.detach()
                    .unsqueeze(-3)
                    .expand(*c.k.shape[:-2], c.H // c.KV - 1, *c.k.shape[-2:]),
                ],
                -3,
            ).flatten(-4, -3),
            v=c.v.repeat_interleave(c.H // c.KV, -3),
        )
        if c.gqa and c.KV
        else None
    ),
)
steps(
    "gradient-nan-empty-rows",
    "gradient",
    GH + "pytorch/pytorch/pull/196170",
    softmax=lambda c: torch.where(
        (c.scores == -torch.inf).all(-1, keepdim=True), 0.0, torch.softmax(c.scores, -1)
    ).to(c.scores.dtype),
)
steps(
    "gradient-last-key",
    "gradient",
    "no report; common slip",
    prepare=lambda c: (
        c.__dict__.update(v=torch.cat([c.v[..., :-1, :], c.v[..., -1:, :].detach()], -2))
        if c.S > 64
        else None
    ),
)


# --- rare conditions ---------------------------------------------------------------------------
def rare(name: str, condition: Callable[..., bool], effect: str = "tail") -> None:
    """Enter a mutant that is wrong under a condition only."""

    def make() -> Callable[..., Any]:
        def attention(q: Tensor, k: Tensor, v: Tensor, **f: Any) -> Any:
            output = RIGHT(q, k, v, **f)
            mask = f.get("attn_mask")
            if not output.numel() or not condition(q, k, v, mask, f):
                return output
            if effect == "tail":  # the last query of the last head and batch
                wrong = output.clone()
                wrong.view(-1, *output.shape[-2:])[-1, -1] *= 1.05
                return wrong
            if effect == "small":
                return output * (1 + 64 * torch.finfo(q.dtype).eps)
            return output.flip(-2) if output.shape[-2] > 1 else output * 0

        return attention

    mutant(
        f"rare-{name}",
        "rare",
        "no report of this pair; of its kind: " + GH + "pytorch/pytorch/issues/191937",
    )(make)


def is_half(x: Tensor) -> bool:
    return x.dtype in (torch.float16, torch.bfloat16)


rare(
    "block-masked-causal",
    lambda q, k, v, m, f: q.shape[-2] % 64 == 1 and m is not None and bool(f.get("is_causal")),
)
rare("block-and-mask", lambda q, k, v, m, f: q.shape[-2] % 64 == 1 and m is not None)
rare(
    "key-block-causal-gqa",
    lambda q, k, v, m, f: (
        k.shape[-2] % 32 == 1 and bool(f.get("is_causal")) and bool(f.get("enable_gqa"))
    ),
)
rare("long-keys", lambda q, k, v, m, f: k.shape[-2] > 2048)
rare("long-queries-causal", lambda q, k, v, m, f: q.shape[-2] > 2048 and bool(f.get("is_causal")))
rare(
    "long-keys-mask",
    lambda q, k, v, m, f: k.shape[-2] > 1024 and m is not None and m.dtype == torch.bool,
)
rare(
    "odd-heads-half",
    lambda q, k, v, m, f: q.dim() == 4 and q.shape[1] % 2 == 1 and q.shape[1] > 1 and is_half(q),
)
rare(
    "batch-over-four-mask", lambda q, k, v, m, f: q.dim() == 4 and q.shape[0] > 4 and m is not None
)
rare(
    "strided-mask-half",
    lambda q, k, v, m, f: not k.is_contiguous() and m is not None and is_half(q),
)
rare(
    "mask-heads-only",
    lambda q, k, v, m, f: (
        m is not None and m.dim() == 4 and m.shape[0] == 1 and m.shape[1] > 1 and m.shape[2] == 1
    ),
)
rare(
    "causal-rectangular-gqa",
    lambda q, k, v, m, f: (
        bool(f.get("is_causal")) and q.shape[-2] != k.shape[-2] and bool(f.get("enable_gqa"))
    ),
)
rare(
    "scale-and-value-size",
    lambda q, k, v, m, f: f.get("scale") is not None and q.shape[-1] != v.shape[-1],
)
rare(
    "bf16-gqa-float-mask",
    lambda q, k, v, m, f: (
        q.dtype == torch.bfloat16
        and bool(f.get("enable_gqa"))
        and m is not None
        and m.dtype != torch.bool
    ),
)
rare(
    "float64-strided-value",
    lambda q, k, v, m, f: q.dtype == torch.float64 and not v.is_contiguous() and k.is_contiguous(),
)
rare("odd-size-long", lambda q, k, v, m, f: q.shape[-1] % 8 != 0 and k.shape[-2] > 512)
rare(
    "small-error",
    lambda q, k, v, m, f: (
        bool(f.get("is_causal")) and q.shape[-2] > 64 and q.dtype == torch.float32
    ),
    "small",
)
rare("five-dims-mask", lambda q, k, v, m, f: q.dim() == 5 and m is not None and m.dim() == 4)
rare(
    "single-query-gqa-mask",
    lambda q, k, v, m, f: q.shape[-2] == 1 and bool(f.get("enable_gqa")) and m is not None,
)
rare("many-heads", lambda q, k, v, m, f: q.dim() > 2 and q.shape[-3] > 32)
rare(
    "grad-gqa-causal",
    lambda q, k, v, m, f: (
        q.requires_grad and bool(f.get("enable_gqa")) and bool(f.get("is_causal"))
    ),
)
