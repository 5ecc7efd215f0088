"""Extensions that change how sequences are stored: a key-value cache, packed sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attncheck.conformance.bases import designed
from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import compare
from attncheck.conformance.extensions.extension import Extension, Variant
from attncheck.conformance.numerics import expect
from attncheck.conformance.oracle import Rules
from attncheck.conformance.registry import Property
from attncheck.conformance.subject import Subject

__all__ = ["DECODING", "KV_CACHE", "PACKED", "STORED", "only_plain"]

DECODING = Rules(align="bottom-right", causal=True, lines=None)
STORED = (
    "scale-default", "gqa-ratios", "softmax-large-logits", "softmax-running-maximum",
    "accuracy-dtypes", "layout-strides", "gradient-values", "state-inputs-untouched",
    "state-calls-independent", "state-deterministic", "relation-batch-independent",
    "design-small", "lengths-blocks", "lengths-long", "causal-square",
)  # fmt: skip


def only_plain(kwargs: dict[str, Any], allowed: Sequence[str] = ()) -> None:
    """Refuse what an adapter cannot express.

    Args:
        kwargs: What a call passes.
        allowed: What it may pass besides ``enable_gqa``.
    """
    asked = sorted(name for name in kwargs if name not in allowed and name != "enable_gqa")
    if asked:
        raise NotImplementedError(f"the adapter has no {', '.join(asked)}")


def cache_adapter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn ``fn(q, k_cache, v_cache, cache_len)`` into the plain signature.

    The cache is longer than the sequence; what lies behind it is large garbage.
    """

    def attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:
        only_plain(kwargs)
        if query.dim() != 4 or query.shape[-2] > key.shape[-2]:
            raise NotImplementedError("the adapter wants 4-D inputs, no more queries than keys")
        key, value = (
            torch.cat([x, torch.full_like(x[..., :1, :], 333.0).expand(-1, -1, 5, -1)], -2)
            for x in (key, value)
        )
        length = torch.full((query.shape[0],), key.shape[-2] - 5, device=query.device)
        return function(query, key, value, length)

    return attention


def cache_cases(plan: Plan) -> Sequence[Case]:
    """Return batches whose lengths the property makes unequal."""
    return designed(
        12, 60, 200, batch=(1, 2, 3, 5), heads=((1, 1), (2, 1), (1, 4), (2, 2), (2, 3)),
        n_query=(1, 2, 4), n_key=(5, 16, 17, 33, 64, 65, 130), size=(8, 17, 64),
    )(plan)  # fmt: skip


def ragged_cache(subject: Subject, case: Case) -> None:
    """Give each sequence a length of its own, NaN behind it, and compare one by one."""
    inputs = subject.build(case)
    length = torch.tensor(
        [max(case.n_query, case.n_key - 3 * i - case.seed % 2) for i in range(case.batch)]
    )
    key, value = inputs.key.clone(), inputs.value.clone()
    for number, end in enumerate(length.tolist()):
        key[number, :, end:], value[number, :, end:] = torch.nan, torch.nan
    raw = Subject(subject.original or subject.function, device=subject.device)
    got = raw.invoke(inputs.query, key, value, length.to(inputs.query.device)).output
    for number, end in enumerate(length.tolist()):
        one = Inputs(
            inputs.query[number], key[number, :, :end], value[number, :, :end], None, inputs.flags
        )
        compare(got[number], expect(one, DECODING)["output"], f"output of sequence {number}")


KV_CACHE = Extension(
    "kv_cache",
    "fn(query, key_cache, value_cache, cache_len): query (batch, head, query, size) are the last "
    "of cache_len[batch] tokens; what lies behind them in the cache must not matter",
    "Pope et al. 2023; Kwon et al. 2023 (PagedAttention); flash_attn_with_kvcache",
    [Variant("cache", DECODING, cache_adapter)],
    [
        Property(
            "cache-ragged",
            "extension",
            "sequences of a batch have lengths of their own, and NaN may lie behind them",
            "https://github.com/Dao-AILab/flash-attention/issues/1745",
            frozenset({"extension"}),
            cache_cases,
            ragged_cache,
        )
    ],
    Capabilities(mask="none", causal=False, scale=False, dropout=False, ranks=(4,), empty=False),
    STORED,
)


def packed_adapter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn ``fn(q, k, v, cu_seqlens, is_causal=False)`` into the plain signature."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **kwargs: Any
    ) -> Any:
        only_plain(kwargs)
        if query.dim() != 4 or query.shape[-2] != key.shape[-2]:
            raise NotImplementedError("the adapter wants 4-D inputs of equal lengths")
        batch, _, length, _ = query.shape
        packed = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
        bounds = torch.arange(batch + 1, device=query.device, dtype=torch.int32) * length
        output = function(*packed, bounds, **({"is_causal": True} if is_causal else {}))
        return output.unflatten(0, (batch, length)).transpose(1, 2)

    return attention


def packed_cases(plan: Plan) -> Sequence[Case]:
    """Return cases whose length the property cuts into sequences."""
    return designed(
        12, 60, 200, heads=((1, 1), (2, 1), (1, 4), (2, 3)), n_query=(9, 20, 67, 130, 200),
        size=(8, 17, 64), causal=(False, True),
    )(plan)  # fmt: skip


def ragged_packed(subject: Subject, case: Case) -> None:
    """Pack sequences of unequal lengths, empty and single ones too, one of them NaN."""
    inputs = subject.build(case)
    cuts = [0, 0, 1, case.n_query // 3, case.n_query // 3 + 1, case.n_query - 2, case.n_query]
    query, key, value = (
        x[0].transpose(0, 1).clone() for x in (inputs.query, inputs.key, inputs.value)
    )
    spoilt = 3  # the fourth sequence
    for tensor in (query, key, value):
        tensor[cuts[spoilt - 1] : cuts[spoilt]] = torch.nan if case.seed % 2 else 1000.0
    bounds = torch.tensor(cuts, dtype=torch.int32, device=query.device)
    raw = Subject(subject.original or subject.function, device=subject.device)
    flags = {"is_causal": True} if case.causal else {}
    got = raw.invoke(query, key, value, bounds, **flags).output
    for number, (start, end) in enumerate(pairwise(cuts)):
        if number == spoilt - 1 or start == end:
            continue
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        one = Inputs(q, k, v, None, inputs.flags)
        wanted = expect(one)["output"]
        compare(got[start:end].transpose(0, 1), wanted, f"output of sequence {number}")


PACKED = Extension(
    "packed",
    "fn(query, key, value, cu_seqlens, is_causal=False): (total, head, size), sequence b from "
    "cu_seqlens[b] to cu_seqlens[b + 1]; none may see another",
    "Krell et al. 2021; flash_attn_varlen_func; https://github.com/Dao-AILab/flash-attention/issues/282",
    [Variant("packed", Rules(lines=None), packed_adapter)],
    [
        Property(
            "packed-ragged",
            "extension",
            "sequences in one tensor have unequal lengths, some empty, and must not mix",
            "https://github.com/Dao-AILab/flash-attention/issues/282",
            frozenset({"extension"}),
            packed_cases,
            ragged_packed,
        )
    ],
    Capabilities(
        mask="none", rectangular=False, scale=False, dropout=False, ranks=(4,), empty=False
    ),
    STORED,
)  # fmt: skip
