"""Wrong implementations that an earlier battery let by, each spelt anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.mutants.base import Steps, mutant, steps

RIGHT = Steps()


# --- dropout -------------------------------------------------------------------------------------
def _padding_lost_under_dropout(c: Any) -> None:
    lost = c.p and c.mask.is_floating_point() and c.mask.shape[-2] == 1 and c.L > 1
    if not lost:
        RIGHT.apply_mask(c)


steps(
    "dropout-loses-row-mask",
    "dropout",
    "no report; the kernel with dropout takes no float mask of one row",
    apply_mask=_padding_lost_under_dropout,
)


def _by_group(c: Any) -> Tensor:
    if not (c.p and c.gqa and c.KV < c.H):
        return RIGHT.dropout(c)
    first = torch.ones_like(c.weights[..., :: c.H // c.KV, :, :])
    return c.weights * F.dropout(first, c.p).repeat_interleave(c.H // c.KV, -3)


def _by_sixteen(c: Any) -> Tensor:
    if not (c.p and c.S > 16):
        return RIGHT.dropout(c)
    tile = F.dropout(torch.ones_like(c.weights[..., :16]), c.p)
    return c.weights * tile.repeat(*(1,) * (tile.dim() - 1), -(-c.S // 16))[..., : c.S]


steps(
    "dropout-shared-by-group", "dropout", "no report; drawn per key-value head", dropout=_by_group
)
steps("dropout-repeats-by-16", "dropout", "no report; 16 random bits a draw", dropout=_by_sixteen)


# --- scale ---------------------------------------------------------------------------------------
def _peak_before_scale(c: Any) -> Tensor:
    if not (c.causal and c.factor < 0 and c.S):
        return RIGHT.softmax(c)
    hidden = c.scores == -torch.inf
    low = c.scores.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
    powers = (c.scores - low).exp().masked_fill(hidden, 0)
    found: Tensor = powers / powers.sum(-1, keepdim=True)
    return found


steps(
    "scale-negative-causal-peak",
    "scale",
    "no report; scale * max(raw scores) is the minimum",
    softmax=_peak_before_scale,
)


# --- masks ---------------------------------------------------------------------------------------
def _rows_taken_as_packed(c: Any) -> None:
    mask = c.mask
    if mask.dim() == 2 and mask.shape[0] > 1 and mask.stride() > (mask.shape[1], 1):
        memory = torch.as_strided(mask.detach(), (mask.untyped_storage().nbytes() //
                                  mask.element_size() - mask.storage_offset(),), (1,))  # fmt: skip
        c.mask = memory[: mask.numel()].view(mask.shape)
    RIGHT.apply_mask(c)


steps(
    "layout-mask-row-stride",
    "layout",
    "no report; a kernel that is given the mask's pointer but not its row stride",
    apply_mask=_rows_taken_as_packed,
)


# --- memory between calls ------------------------------------------------------------------------
@mutant("state-longest-workspace", "state", "no report; one key too many read from a workspace")
def _() -> Callable[..., Any]:
    kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or set(kwargs) - {"enable_gqa"} or k.requires_grad or v.requires_grad:
            return RIGHT(q, k, v, *args, **kwargs)
        tag = (k.shape[:-2], k.shape[-1], v.shape[-1], k.dtype)
        old = kept.get(tag)
        kept[tag] = (k.detach().clone(), v.detach().clone())
        if old is not None and old[0].shape[-2] > k.shape[-2]:
            end = k.shape[-2]
            k, v = (torch.cat([x, o[..., end : end + 1, :]], -2) for x, o in zip((k, v), old))  # noqa: B905
        return RIGHT(q, k, v, **kwargs)

    return attention


# --- gradients -----------------------------------------------------------------------------------
steps(
    "gradient-key-is-value",
    "gradient",
    "no report; a dictionary of gradients by tensor keeps one of two",
    prepare=lambda c: c.__dict__.update(v=c.v.detach()) if c.k is c.v else None,
)


class _KeptElsewhere(torch.autograd.Function):
    """Multiplies weights and values; what it keeps lies in a table by shape."""

    table: dict[Any, tuple[Tensor, Tensor]] = {}  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, weights: Tensor, value: Tensor) -> Tensor:
        ctx.tag = (weights.shape, value.shape, value.dtype)
        _KeptElsewhere.table[ctx.tag] = (weights.detach(), value.detach())
        return weights @ value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weights, value = _KeptElsewhere.table[ctx.tag]
        return grad @ value.mT, weights.mT @ grad


steps(
    "gradient-of-the-last-call",
    "gradient",
    "no report; saved on the module, not on the context",
    combine=lambda c: _KeptElsewhere.apply(c.dropped, c.v),
)


class _GrowingBuffer(torch.autograd.Function):
    """Passes a gradient on, and with it those of earlier passes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.sum = getattr(ctx, "sum", 0) + grad
        return ctx.sum


steps(
    "gradient-twice-adds-up",
    "gradient",
    "no report; an accumulator that the backward pass does not clear",
    prepare=lambda c: c.__dict__.update(v=_GrowingBuffer.apply(c.v)),
)


class _DeltaOfAllWeights(torch.autograd.Function):
    """Softmax, dropout and product, whose backward subtracts a mean over undropped weights."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, value: Tensor, weights: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(value, weights, kept)
        return (weights * kept) @ value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        value, weights, kept = ctx.saved_tensors
        towards = grad @ value.mT
        mean = (weights * towards).sum(-1, keepdim=True)
        return weights * (towards * kept - mean), (weights * kept).mT @ grad, None, None


def _delta_of_all(c: Any) -> Tensor:
    if not c.p:
        return RIGHT.combine(c)
    kept = (c.dropped / c.weights).nan_to_num(0).detach()
    output: Tensor = _DeltaOfAllWeights.apply(c.scores, c.v, c.weights.detach(), kept)
    return output


steps(
    "dropout-delta-of-all-weights",
    "dropout",
    "no report; the row sum of FlashAttention's backward pass, taken before dropout",
    combine=_delta_of_all,
)


class _KeyGradientInHalf(torch.autograd.Function):
    """Multiplies query and key; the gradient of the key is added up in the dtype of the inputs."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor) -> Tensor:
        ctx.save_for_backward(query, key)
        return query @ key.mT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key = ctx.saved_tensors
        sum_so_far = torch.zeros_like(key)
        for rows in range(0, query.shape[-2], 4):
            own = slice(rows, rows + 4)
            sum_so_far = sum_so_far + grad[..., own, :].mT @ query[..., own, :]
        return grad @ key, sum_so_far


steps(
    "gradient-key-summed-in-half",
    "gradient",
    "no report; a kernel that adds the tiles of queries into an output of half precision",
    scores=lambda c: (
        _KeyGradientInHalf.apply(c.q * c.factor, c.k)
        if c.k.element_size() == 2 and c.L > 64
        else RIGHT.scores(c)
    ),
)


class _KeepsOutputs(Steps):
    """Appends every output to a list, as a profiler that was left on does."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def finish(self, c: Any) -> Any:
        self.kept.append(c.output)
        return c.output


mutant("state-keeps-outputs", "state", "no report; a list for debugging that nobody empties")(
    _KeepsOutputs
)


class _KeepsKeys(Steps):
    """A cache of transposed keys by address, without a bound."""

    def __init__(self) -> None:
        self.cache: dict[int, Tensor] = {}

    def scores(self, c: Any) -> Tensor:
        self.cache[len(self.cache)] = c.k.mT
        return RIGHT.scores(c)


mutant("state-keeps-keys", "state", "no report; a cache by tensor that never forgets")(_KeepsKeys)


def _seeding(c: Any) -> Tensor:
    dropped = RIGHT.dropout(c)
    if c.p:
        torch.manual_seed(torch.initial_seed() + 1)
    return dropped


steps(
    "dropout-seeds-anew",
    "dropout",
    "no report; a kernel that sets the next seed itself instead of advancing the generator",
    dropout=_seeding,
)


def _causal_by_corners(c: Any) -> None:
    mask = c.mask if c.mask.dtype == torch.bool else c.mask == 0
    square = mask.shape[-1] == mask.shape[-2] > 1
    whole = bool(mask[..., -1, :].all()) and bool(mask.diagonal(dim1=-2, dim2=-1).all())
    if square and whole and not bool(mask[..., 0, 1:].any()):
        c.scores = c.scores.masked_fill(RIGHT.future(c), -torch.inf)
    else:
        RIGHT.apply_mask(c)


steps(
    "mask-causal-by-corners",
    "mask",
    "no report; a mask whose first and last row are those of a causal one is taken for it",
    apply_mask=_causal_by_corners,
)


def _first_of_five(c: Any) -> None:
    if c.mask.dim() == 5 and c.mask.shape[0] == 1:
        c.mask = c.mask[:, :1]
    RIGHT.apply_mask(c)


steps(
    "shape-five-axes-one-mask",
    "shape",
    "no report; leading axes of query and key are run together, and the mask's are not",
    apply_mask=_first_of_five,
)


def _saturating_sum(c: Any) -> Tensor:
    if c.dtype != torch.float16 or c.p or 0 in c.scores.shape:
        return RIGHT.combine(c)
    raised = (c.scores - c.scores.detach().amax(-1, keepdim=True).clamp_min(-60000)).float().exp()
    summed = (raised @ c.v.float()).clamp(-65504, 65504)
    output: Tensor = summed / raised.sum(-1, keepdim=True).clamp_min(1e-30)
    return output.to(c.dtype)


steps(
    "dtype-saturating-sum",
    "dtype",
    "no report; unnormalised weights times values in an accumulator of half precision",
    combine=_saturating_sum,
)


def _half_positions(c: Any) -> Tensor:
    queries, keys = (torch.arange(n, dtype=torch.float32).to(c.dtype) for n in (c.L, c.S))
    return queries[:, None] < keys


steps(
    "causal-half-positions",
    "causal",
    "no report; positions of a causal mask are counted in the dtype of the query",
    future=_half_positions,
)


class _SharedFlags(Steps):
    """Keeps the flags of the running call where all threads see them."""

    def prepare(self, c: Any) -> None:
        self.scale, self.causal = c.scale, c.causal

    def hide(self, c: Any) -> None:
        time.sleep(0)
        c.causal = self.causal
        RIGHT.hide(c)


mutant("state-flags-of-all-threads", "state", "no report; a module that stores its arguments")(
    _SharedFlags
)
