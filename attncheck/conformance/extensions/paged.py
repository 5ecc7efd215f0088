"""A key-value cache in pages: a table says which page holds which part of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attncheck.conformance.bases import designed
from attncheck.conformance.capabilities import Capabilities
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import compare
from attncheck.conformance.extensions.extension import Extension, Variant
from attncheck.conformance.extensions.sequences import DECODING, STORED, only_plain
from attncheck.conformance.numerics import expect
from attncheck.conformance.registry import Property
from attncheck.conformance.subject import Subject, Violation

__all__ = ["PAGED", "paginate"]


def paginate(
    tensors: Sequence[Tensor], page_size: int, garbage: float, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Lay sequences out in pages of one pool, in no order.

    Args:
        tensors: Each ``(batch, head, length, size)``, of one batch, head and length.
        page_size: Tokens in a page.
        garbage: What lies in the rest of a last page, and in pages that belong to nobody.
        seed: Chooses the order of the pages.

    Returns:
        For each tensor its pages ``(page, page_size, head, size)``, and the table
        ``(batch, page of the sequence)``, int32, one column longer than the sequences: beyond
        their end it names pages of garbage.

    Example:
        >>> (pages,), table = paginate([torch.ones(2, 1, 5, 3)], page_size=4, garbage=9.0)
        >>> pages.shape, table.shape, pages[int(table[0, 1]), :, 0, 0].tolist()
        (torch.Size([7, 4, 1, 3]), torch.Size([2, 3]), [1.0, 9.0, 9.0, 9.0])
    """
    batch, _, length, _ = tensors[0].shape
    each = -(-length // page_size)
    total = batch * each + 3
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    table = order[: batch * each].reshape(batch, each)
    nobody = order[batch * each :].repeat(batch)[:batch, None]
    table = torch.cat([table, nobody], 1).to(torch.int32)
    place = torch.empty_like(order)  # where page p is found among the pages in order
    place[order] = torch.arange(total)
    found = []
    for tensor in tensors:
        missing = total * page_size - batch * each * page_size
        filled = torch.nn.functional.pad(
            tensor.transpose(1, 2), (0, 0, 0, 0, 0, each * page_size - length), value=garbage
        ).flatten(0, 1)
        spare = torch.full((missing, *filled.shape[1:]), garbage).to(filled)
        pages = torch.cat([filled, spare]).reshape(total, page_size, *filled.shape[1:])
        found.append(pages[place.to(pages.device)])
    return found, table.to(tensors[0].device)


def paged_adapter(page_size: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Turn ``fn(q, key_pages, value_pages, block_table, cache_len)`` into the plain signature."""

    def adapt(function: Callable[..., Any]) -> Callable[..., Any]:
        def attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:
            only_plain(kwargs)
            if query.dim() != 4 or query.shape[-2] > key.shape[-2]:
                raise NotImplementedError("the adapter wants 4-D inputs, no more queries than keys")
            (keys,), table = paginate([key], page_size, 333.0)
            (values,), _ = paginate([value], page_size, 333.0)
            length = torch.full((query.shape[0],), key.shape[-2], device=query.device)
            return function(query, keys, values, table, length.to(torch.int32))

        return attention

    return adapt


def paged_cases(plan: Plan) -> Sequence[Case]:
    """Return batches whose lengths the properties make unequal, around the ends of pages."""
    return designed(
        12, 70, 200, batch=(1, 2, 3, 5), heads=((1, 1), (2, 1), (1, 4), (2, 2), (2, 3)),
        n_query=(1, 1, 2, 4), n_key=(5, 15, 16, 17, 31, 32, 33, 48, 64, 65, 130, 257),
        size=(8, 17, 64),
    )(plan)  # fmt: skip


def _raw(subject: Subject) -> Subject:
    return Subject(subject.original or subject.function, device=subject.device)


def _compare_each(got: Tensor, inputs: Inputs, lengths: Sequence[int], what: str) -> None:
    for number, end in enumerate(lengths):
        key, value = (x[number, :, :end] for x in (inputs.key, inputs.value))
        one = Inputs(inputs.query[number], key, value, None, inputs.flags)
        compare(got[number], expect(one, DECODING)["output"], f"output of {what} {number}")


def ragged_pages(subject: Subject, case: Case) -> None:
    """Give each sequence a length of its own and NaN wherever nobody's tokens lie."""
    inputs = subject.build(case)
    lengths = [max(case.n_query, case.n_key - 7 * i - case.seed % 2) for i in range(case.batch)]
    filled = []
    for tensor in (inputs.key, inputs.value):
        tensor = tensor.clone()
        for number, end in enumerate(lengths):
            tensor[number, :, end:] = torch.nan
        filled.append(tensor)
    (keys, values), table = paginate(filled, 16, torch.nan, seed=case.seed)
    kept = table.clone()
    length = torch.tensor(lengths, dtype=torch.int32, device=inputs.query.device)
    got = _raw(subject).invoke(inputs.query, keys, values, table, length).output
    _compare_each(got, inputs, lengths, "sequence")
    if not torch.equal(table, kept):
        raise Violation("the block table was modified in place")


def shared_pages(subject: Subject, case: Case) -> None:
    """Let all sequences share the pages of a prefix, each going on in pages of its own."""
    inputs = subject.build(case)
    full = case.n_key // 16
    key, value = (
        torch.cat([x[:1, :, : full * 16].expand(case.batch, -1, -1, -1), x[:, :, full * 16 :]], 2)
        for x in (inputs.key, inputs.value)
    )
    inputs = replace(inputs, key=key, value=value)
    (keys, values), table = paginate([key, value], 16, torch.nan, seed=case.seed + 1)
    for number in range(1, case.batch):  # the copies of the prefix are nobody's now
        unused = table[number, :full].long()
        keys[unused], values[unused] = torch.nan, torch.nan
    table[:, :full] = table[:1, :full]
    length = torch.full((case.batch,), case.n_key, dtype=torch.int32, device=table.device)
    got = _raw(subject).invoke(inputs.query, keys, values, table, length).output
    _compare_each(got, inputs, [case.n_key] * case.batch, "sequence with a shared prefix")


def _property(id: str, reason: str, examine: Callable[[Subject, Case], None]) -> Property:
    return Property(
        id,
        "extension",
        reason,
        "Kwon et al. 2023 (PagedAttention), 4.2 and 4.4; "
        "https://github.com/pegainfer-project/pegainfer/issues/291",
        frozenset({"extension"}),
        paged_cases,
        examine,
    )


PAGED = Extension(
    "paged",
    "fn(query, key_pages, value_pages, block_table, cache_len): pages (page, slot, head, size), "
    "token t of sequence b lies in page block_table[b, t // slots], slot t % slots; query (batch, "
    "head, query, size) are the last of cache_len[batch] tokens",
    "Kwon et al. 2023 (PagedAttention); flash_attn_with_kvcache(..., block_table=...)",
    [Variant(f"pages-{size}", DECODING, paged_adapter(size)) for size in (16, 32)],
    [
        _property(
            "paged-ragged",
            "pages lie in any order, the last is partly filled, and NaN may lie in all others",
            ragged_pages,
        ),
        _property(
            "paged-shared",
            "sequences may share the pages of a prefix",
            shared_pages,
        ),
    ],
    Capabilities(
        mask="none", causal=False, scale=False, dropout=False, ranks=(4,), empty=False,
        value_size=None,
    ),
    STORED,
)  # fmt: skip
