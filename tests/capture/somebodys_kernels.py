"""Kernels of somebody: in TorchScript, as an `autograd.Function` and as operators; and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 8
Function = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """Attention that is captured."""

    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1) @ x


class Beside(nn.Module):
    """Says nothing of attention in its name."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def beside(function: Function) -> nn.Module:
    return nn.Sequential(Plain(), Beside(function))


@torch.jit.script
def scripted_softmax(scores: Tensor, scale: float) -> Tensor:
    return torch.softmax(scores * scale, -1)


@torch.jit.script
def scripted_masked(scores: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(mask, -10000.0), -1)


@torch.jit.script
def scripted_scaling(scores: Tensor, scale: float) -> Tensor:
    return scores * scale


class Kernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return torch.from_numpy(scores.detach().numpy()).softmax(-1)


@torch.jit.script
def scripted_with_sums(scores: Tensor) -> tuple[Tensor, Tensor]:
    return torch.softmax(scores, -1), scores.logsumexp(-1)


@torch.jit.script
def scripted_attention(q: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bqd,bkd->bqk", [q, v])
    return torch.einsum("bqk,bkd->bqd", [torch.softmax(scores, -1), v])


@torch.jit.script
def scripted_router(x: Tensor, w: Tensor) -> Tensor:
    return torch.softmax(torch.matmul(x, w), -1)


@torch.jit.script
def dropout_add(p: Tensor, bias: Tensor, residual: Tensor, prob: float) -> Tensor:
    return p + bias * 0.0 + residual * 0.0


class Attending(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return F.scaled_dot_product_attention(q, k, v)


normalise, attend = Kernel.apply, Attending.apply


class Added(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scores = torch.baddbmm(torch.zeros(1, 5, 5), x, x.mT)
        return torch.baddbmm(torch.zeros(1, 5, WIDTH), torch.softmax(scores, -1), x)


TRACED = torch.jit.trace(Added(), torch.randn(1, 5, WIDTH))
SCRIPTED = torch.jit.script(nn.Softmax(-1))


class AttnResidualAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Tensor, x: Tensor, g: Tensor) -> Tensor:
        return torch.from_numpy((o / 2 + x * g / 9).detach().numpy())


class forward(torch.autograd.Function):  # noqa: N801
    """Attention, called as an operator is that does not attend."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Attending.forward(ctx, q, k, v)


class Normalise(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class Mix(Normalise):
    @staticmethod
    def forward(a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return a * b + c


def _without_last_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :-1], v[:, :-1])


def _in_place(scores: Tensor) -> None:
    scores.copy_(scores.softmax(-1))


def _into(out: Tensor, scores: Tensor) -> None:
    out.copy_(scores.softmax(-1))


def _copy_into(o: Tensor, x: Tensor) -> None:
    o.copy_(x)


def _attend_into(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    out.copy_(F.scaled_dot_product_attention(q, k, v))


def _by_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


KERNELS: dict[str, Callable[..., Any]] = {
    "softmax_lse(Tensor s) -> (Tensor, Tensor)": lambda s: (s.softmax(-1), s.logsumexp(-1)),
    "softmaxes(Tensor[] s) -> Tensor[]": lambda s: [each.softmax(-1) for each in s],
    "softmax_dim(Tensor s, int dim) -> Tensor": lambda s, dim: s.softmax(dim),
    "softmax_(Tensor(a!) s) -> ()": _in_place,
    "softmax_out(Tensor(a!) o, Tensor s) -> ()": _into,
    "softmax_sink(Tensor s) -> Tensor": lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True)),
    "weigh(Tensor w, Tensor v) -> Tensor": lambda w, v: w @ v,
    "copy_into(Tensor(a!) o, Tensor x) -> ()": _copy_into,
    "dropout_(Tensor(a!) p, Tensor mask) -> Tensor(a!)": lambda p, mask: p.mul_(mask),
    "relu_scores(Tensor s) -> Tensor": lambda s: (s - 100).relu(),
    "unified_attention_with_output(Tensor q, Tensor k, Tensor v, Tensor(a!) o) -> ()": _attend_into,
    "packed(Tensor qkv) -> Tensor": lambda p: F.scaled_dot_product_attention(*p.unbind(2)),
    "listed(Tensor[] qkv) -> Tensor": lambda p: F.scaled_dot_product_attention(*p),
    "flash_lse(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)": lambda q, k, v: (
        (q @ k.mT).logsumexp(-1),
        F.scaled_dot_product_attention(q, k, v),
    ),
    "probabilities(Tensor q, Tensor k) -> Tensor": lambda q, k: (q @ k.mT).softmax(-1),
    "flash_rms_norm(Tensor x, Tensor r, Tensor w) -> Tensor": lambda x, r, w: (
        F.rms_norm(x + r, (WIDTH,)) * w
    ),
    "attn_gate(Tensor x, Tensor g, Tensor r) -> Tensor": lambda x, g, r: x * g.sigmoid() + r,
    "attention_mix(Tensor o, Tensor x, Tensor g) -> Tensor": lambda o, x, g: o + x * g,
    "linear_attention(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: (
        (q.sigmoid() @ k.sigmoid().mT) @ v / (q.sigmoid() @ k.sigmoid().mT).sum(-1, True)
    ),
    "forward(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: a * b + c,
    "run(Tensor q, Tensor k, Tensor v, bool attends=True) -> Tensor": lambda q, k, v, yes=True: (
        F.scaled_dot_product_attention(q, k, v) if yes else q * k + v
    ),
    "product(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: a * b * c,
    "pick(Tensor a, Tensor b, Tensor c) -> Tensor": lambda a, b, c: torch.where(a > 9, b, c),
    "quantise(Tensor x, Tensor s, Tensor z) -> Tensor": lambda x, s, z: (x + z).to(torch.int8),
    "cached(Tensor q, Tensor k, Tensor v) -> Tensor": lambda q, k, v: q.clone(),
}


@contextmanager
def operators() -> Iterator[torch.library.Library]:
    """Define all of them under ``torch.ops.somebodys`` as long as the context lasts."""
    library = torch.library.Library("somebodys", "DEF")
    library.define("normalise(Tensor scores) -> Tensor")
    library.impl("normalise", lambda scores: torch.softmax(scores, -1), "CPU")
    library.define("scale(Tensor scores, float factor) -> Tensor")
    library.impl("scale", lambda scores, factor: scores * factor, "CPU")
    library.define("mystery(Tensor q, Tensor k, Tensor v, float scale) -> Tensor")
    library.impl("mystery", lambda q, k, v, s: (q @ k.mT * s).softmax(-1) @ v, "CPU")
    library.define("by_heads(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("by_heads", _by_heads, "CPU")
    library.define("flash_fwd(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("flash_fwd", _without_last_key, "CPU")
    library.define("linear_form(Tensor q, Tensor k, Tensor v) -> Tensor")
    library.impl("linear_form", lambda q, k, v: q @ (k.mT @ v), "CPU")
    for signature, implementation in KERNELS.items():
        library.define(signature)
        library.impl(signature.split("(")[0], implementation, "CPU")
    yield library
    library._destroy()


def ops() -> Any:
    return torch.ops.somebodys
