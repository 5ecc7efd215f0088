"""Small maps are looked at on one thread, large ones on as many as torch has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import attncheck
from attncheck.attention import AttentionMaps, LayerAttention, QueryKey, as_attention
from attncheck.attention.light import is_light, on_one_thread_if_light
from attncheck.capture import keeping
from attncheck.compiled import SMALL
from attncheck.evaluate import dispatch, profile_layer

LARGE = torch.zeros(1, 1, 1 << 10, SMALL >> 10)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@on_one_thread_if_light
def threads(attention: Any, **_: Any) -> int:
    return torch.get_num_threads()


def layer(weights: torch.Tensor) -> LayerAttention:
    return LayerAttention(weights)


SMALL_ONES = {
    "tensor": torch.eye(4),
    "array": np.eye(4),
    "layer": layer(torch.eye(4)[None, None]),
    "maps": AttentionMaps([layer(torch.eye(4)[None, None])] * 3),
    "list": [torch.eye(4)] * 3,
    "one weight less than a large one": LARGE[..., :-1],
    "many small": [torch.eye(64)[None]] * (SMALL >> 11),
}
OTHERS = {
    "tensor": LARGE,
    "array": LARGE.numpy(),
    "layer": layer(LARGE),
    "maps": AttentionMaps([layer(torch.eye(4)[None, None]), layer(LARGE)]),
    "tuple": (torch.eye(4), LARGE),
    "elsewhere": torch.eye(4, device="meta"),
    "what would have to be looked into": {"attentions": [torch.eye(4)]},
    "nothing": None,
}


@pytest.mark.parametrize("attention", SMALL_ONES.values(), ids=SMALL_ONES)
def test_small_maps_on_one_thread(attention: Any) -> None:
    assert is_light(attention)
    assert threads(attention) == threads(attention=attention) == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("attention", OTHERS.values(), ids=OTHERS)
def test_others_on_all(attention: Any) -> None:
    assert not is_light(attention)
    assert threads(attention) == 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_sizes_that_are_no_numbers_are_not_asked_for(layout: torch.layout) -> None:
    assert threads(torch.nested.nested_tensor([torch.eye(3), torch.eye(4, 3)], layout=layout)) == 2


def test_what_goes_wrong_comes_through_and_nothing_stays() -> None:
    @on_one_thread_if_light
    def fails(attention: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails(torch.eye(4))
    assert torch.get_num_threads() == 2


DOORS = {
    "as_attention": as_attention,
    "classify_heads": attncheck.classify_heads,
    "compute_attention_statistics": attncheck.compute_attention_statistics,
    "profile_layer": lambda weights: profile_layer(layer(weights)),
    **{name: check.run for name, check in attncheck.CHECKS.items()},
}


@pytest.mark.parametrize("name", DOORS)
def test_doors_that_do_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by how many threads there are when something is computed from the weights."""
    seen: list[int] = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.__name__ != "__get__":  # of the device and the shape
                seen.append(torch.get_num_threads())
            return super().__torch_function__(func, types, args, kwargs or {})

    weights = torch.stack([torch.eye(12), torch.ones(12, 12) / 12])[None].as_subclass(Watched)
    wanted = {"pattern": ("diagonal",), "sliding_window": (3,), "attention_close": (weights,)}
    more = {"segments_isolated": (torch.arange(12),), "mask_respected": (torch.eye(12) > 0,)}
    bounds = {"entropy": {"max": 1.0}, "sink_mass": {"min": 0.0}}
    seen.clear()
    DOORS[name](weights, *(wanted | more).get(name, ()), **bounds.get(name, {}))
    assert set(seen) == {1}


class Attends(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(("length", "expected"), [(16, 1), (1 << 10, 2)])
def test_captured_layers_are_compared_likewise(
    length: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    layer = keeping.Keeper.layer

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return layer(*args)

    monkeypatch.setattr(keeping.Keeper, "layer", watched)
    maps = attncheck.AttentionExtractor(Attends()).get_attention(torch.randn(1, 1, length, 4))
    assert maps[0].shape[-1] == length
    assert seen == [expected]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("heads", [1, 16])
def test_profiles_in_loops_run_on_all(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    profile = dispatch._profile

    def watched(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return profile(*args)

    monkeypatch.setattr(dispatch, "_profile", watched)
    query = torch.randn(1, heads, 100, 4)
    record = QueryKey(query, query, tuple(range(heads)), 0.5)
    found = dispatch.profile_layer(LayerAttention(record, causal=True))
    assert seen == [2 if found.evaluator.startswith("fused") else 1]
    assert heads > 1 or seen == [1]
