"""Which heads an assertion is about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from attncheck.attention import LayerAttention
from attncheck.checks.select import narrow, select_heads

LAYERS = [
    LayerAttention(torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2), index=index)
    for index in range(3)
]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (None, [(0, (0, 1, 2, 3)), (1, (0, 1, 2, 3)), (2, (0, 1, 2, 3))]),
        ("L1H2", [(1, (2,))]),
        ("L2", [(2, (0, 1, 2, 3))]),
        (3, [(0, (3,)), (1, (3,)), (2, (3,))]),
        (np.int64(3), [(0, (3,)), (1, (3,)), (2, (3,))]),
        ([(1, 0), "L1H3"], [(1, (0, 3))]),
        (["L2H1", "L0H1", "L2H1"], [(0, (1,)), (2, (1,))]),
        (range(2), [(0, (0, 1)), (1, (0, 1)), (2, (0, 1))]),
        (("L0H0", "L0H1"), [(0, (0, 1))]),
        (torch.tensor(3), [(0, (3,)), (1, (3,)), (2, (3,))]),
        (np.array([0, 1]), [(0, (0, 1)), (1, (0, 1)), (2, (0, 1))]),
    ],
)
def test_forms(heads: Any, expected: list[tuple[int, tuple[int, ...]]]) -> None:
    found = select_heads(LAYERS, heads)
    assert [(layer.index, layer.heads) for layer in found] == expected
    for layer in found:
        assert tuple(int(x) for x in layer.weights[0, :, 0, 0]) == layer.heads


@pytest.mark.parametrize(
    ("heads", "error", "message"),
    [
        ("L3H0", ValueError, "no head 'L3H0'; there are L0H0 to L2H3"),
        (4, ValueError, "no head 4"),
        ([(0, 9)], ValueError, r"no head \(0, 9\)"),
        ("5.1", ValueError, "cannot read '5.1'"),
        ("l1h1", ValueError, "cannot read"),
        ([], ValueError, "empty"),
        ((1, 2), ValueError, r"may mean head 2 of layer 1, .* write \[\(1, 2\)\] or \[1, 2\]"),
        (1.5, TypeError, "heads: got float"),
        ([1.5], TypeError, r"cannot read 1\.5"),
        ([True], TypeError, "cannot read True"),
        (-1, ValueError, "no head -1"),
        ((np.int64(1), np.int64(2)), ValueError, "may mean head 2 of layer 1"),
        ({"L0": 1}, TypeError, "heads: got dict"),
    ],
)
def test_wrong_selections(heads: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select_heads(LAYERS, heads)


def test_numbers_are_the_models() -> None:
    layer = LayerAttention(torch.ones(1, 2, 1, 1), index=5, heads=(3, 7))
    assert select_heads([layer], "L5H7")[0].heads == (7,)
    with pytest.raises(ValueError, match="there are L5H3 to L5H7"):
        select_heads([layer], "L5H0")


def test_mask_and_sink_go_with_the_head() -> None:
    mask = torch.zeros(1, 2, 1, 3, dtype=torch.bool)
    mask[0, 1] = True
    sink = torch.tensor([0.1, 0.2]).view(1, 2, 1)
    layer = LayerAttention(torch.ones(1, 2, 1, 3), mask=mask, sink_mass=sink)
    one = narrow(layer, [1])
    assert one.mask is not None
    assert one.mask.all()
    assert one.sink_mass is not None
    assert one.sink_mass.flatten().tolist() == pytest.approx([0.2])
    shared = narrow(LayerAttention(torch.ones(1, 2, 1, 3), mask=mask[:, :1]), [1])
    assert shared.mask is not None
    assert shared.mask.shape == (1, 1, 1, 3)


@pytest.mark.parametrize("heads", [torch.tensor(1.0), [torch.tensor(1.0)], np.array(None)])
def test_a_number_that_is_not_whole_is_named(heads: Any) -> None:
    with pytest.raises(TypeError, match=r"heads: cannot read .*; expected"):
        select_heads(LAYERS, heads)
