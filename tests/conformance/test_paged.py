"""The paged cache: pages that mean the same sequences, and an adapter that asks for no more."""

from __future__ import annotations

import pytest
import torch

from attncheck import check_attention
from attncheck.conformance.extensions.paged import paginate
from tests.conformance.extended import WRONG, paged, paged_kernel


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_pages_read_by_the_table_are_the_sequence(length: int) -> None:
    sequences = torch.randn(3, 2, length, 5)
    (pages,), table = paginate([sequences], 16, torch.nan, seed=4)
    assert table.dtype == torch.int32
    for number, row in enumerate(table):
        tokens = pages[row.long()].flatten(0, 1)
        assert torch.equal(tokens[:length].transpose(0, 1), sequences[number])
        assert bool(tokens[length:].isnan().all())
    used = table[:, :-1].flatten()
    assert len(set(used.tolist())) == len(used) < len(pages)
    assert used.tolist() != sorted(used.tolist()) or length < 17


def test_keys_and_values_share_a_table() -> None:
    key, value = torch.randn(2, 1, 20, 4), torch.randn(2, 1, 20, 6)
    (keys, values), table = paginate([key, value], 8, 0.0)
    assert keys.shape[:3] == values.shape[:3]
    row = table[1].long()
    assert torch.equal(values[row].flatten(0, 1)[:20].transpose(0, 1), value[1])


def test_gradients_reach_what_was_paged() -> None:
    key = torch.randn(1, 1, 5, 3, requires_grad=True)
    (pages,), _ = paginate([key], 4, 9.0)
    pages.sum().backward()
    assert key.grad is not None
    assert torch.equal(key.grad, torch.ones_like(key))


@pytest.mark.slow
def test_a_kernel_that_goes_by_pages_passes() -> None:
    report = check_attention(paged_kernel, extension="paged", effort="quick", raises=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("wrong", WRONG["paged"])
def test_wrong_pages_are_noticed_by_the_ragged_property(wrong: object) -> None:
    from attncheck.conformance.case import Case
    from attncheck.conformance.extensions.paged import ragged_pages, shared_pages
    from attncheck.conformance.subject import Subject, Violation

    case = Case(batch=3, kv_heads=2, n_key=40, gqa=True, ratio=2)
    for examine in (ragged_pages, shared_pages):
        examine(Subject(paged), case)
    found = []
    for examine in (ragged_pages, shared_pages):
        try:
            examine(Subject(wrong), case)  # type: ignore[arg-type]
        except Violation as violation:
            found.append(violation)
    assert found
