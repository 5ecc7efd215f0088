"""Jensen-Shannon distances between heads against plain loops; redundancy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.metrics import head_redundancy, head_similarity, similarity
from tests.metrics.cases import layers


def entropy(p: list[float]) -> float:
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def outcomes(layer: LayerAttention, b: int, h: int, i: int) -> list[float]:
    """Visible weights of a row and its sink, divided by their sum."""
    visible = layer.visible().expand(layer.weights.shape)[b, h, i].tolist()
    row = zip(layer.weights[b, h, i].tolist(), visible, strict=True)
    found = [weight if seen else 0.0 for weight, seen in row]
    found.append(0.0 if layer.sink_mass is None else layer.sink_mass[b, h, i].item())
    total = math.fsum(found)
    return [x / total for x in found]


def by_loops(layer: LayerAttention) -> np.ndarray:
    heads, valid = layer.n_heads, layer.valid_rows()
    out = np.full((heads, heads), np.nan)
    for one in range(heads):
        for other in range(heads):
            found = []
            for b in range(layer.batch):
                for i in range(layer.n_query):
                    if valid[b, one, i] and valid[b, other, i]:
                        p, q = outcomes(layer, b, one, i), outcomes(layer, b, other, i)
                        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
                        found.append(entropy(m) - (entropy(p) + entropy(q)) / 2)
            if found:
                out[one, other] = sum(found) / len(found) / math.log(2)
    return out


@given(layer=layers())
def test_distance_equals_the_loops(layer: LayerAttention) -> None:
    found = head_similarity(layer).distance
    np.testing.assert_allclose(found, by_loops(layer), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(data=st.data())
def test_lower_precision_is_evaluated_in_float32(dtype: torch.dtype, data: st.DataObject) -> None:
    layer = data.draw(layers(dtype))
    np.testing.assert_allclose(head_similarity(layer).distance, by_loops(layer), atol=2e-6)


@given(layer=layers(), seed=st.integers(0, 99), block=st.sampled_from([1, 10, 10_000]))
def test_across_layers_is_the_same_as_one_wide_layer(
    layer: LayerAttention, seed: int, block: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(layer.n_heads, generator=generator)
    other = replace(
        layer,
        weights=layer.weights[:, order],
        mask=_heads(layer.mask, order),
        sink_mass=_heads(layer.sink_mass, order),
        index=1,
        name="layer 1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(similarity.BLOCK_WEIGHTS, "cpu", block)
        patch.setitem(similarity.PAIR_WEIGHTS, "cpu", block)
        found = head_similarity(AttentionMaps([layer, other]))
    alone = head_similarity(layer).distance
    n = layer.n_heads
    np.testing.assert_allclose(found.distance[:n, :n], alone, atol=1e-12)
    np.testing.assert_allclose(found.distance[n:, n:], alone[np.ix_(order, order)], atol=1e-12)
    np.testing.assert_allclose(found.distance[:n, n:], alone[:, order.numpy()], atol=1e-12)


def _heads(tensor: torch.Tensor | None, order: torch.Tensor) -> torch.Tensor | None:
    return tensor[:, order] if tensor is not None and tensor.shape[1] > 1 else tensor


@given(layer=layers(torch.float32))
def test_it_is_a_bounded_symmetric_distance(layer: LayerAttention) -> None:
    distance = head_similarity(layer).distance
    known = ~np.isnan(distance)
    assert np.array_equal(distance, distance.T, equal_nan=True)
    assert bool((distance[known] >= 0).all())
    assert bool((distance[known] <= 1).all())
    assert not np.diag(distance)[known.diagonal()].any()


def test_equal_heads_are_at_exactly_zero() -> None:
    head = torch.softmax(torch.randn(40, 40, generator=torch.Generator().manual_seed(0)), -1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert not head_similarity(torch.stack([head, head]).to(dtype)).distance.any()


def test_heads_that_share_no_key_are_at_one() -> None:
    heads = torch.stack([torch.eye(4), torch.eye(4).roll(1, -1)])
    assert head_similarity(heads, causal=False).between("L0H0", "L0H1") == 1


def test_half_shared_closed_form() -> None:
    """One-hot against an even split over two keys, one shared: H(3/4, 1/4) - ln(2) / 2."""
    weights = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]).double()
    m = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = (m - math.log(2) / 2) / math.log(2)
    assert head_similarity(weights).distance[0, 1] == pytest.approx(expected, abs=1e-12)


def test_within_layers_leaves_the_rest_nan() -> None:
    stack = torch.softmax(torch.randn(2, 1, 2, 5, 5), -1)
    inside = head_similarity(stack, within_layers=True).distance
    across = head_similarity(stack).distance
    same = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    assert np.isnan(inside[~same]).all()
    np.testing.assert_allclose(inside[same], across[same], atol=1e-12)


def test_layers_of_other_lengths_need_within_layers() -> None:
    maps = AttentionMaps([LayerAttention(torch.eye(n)[None, None], index=n) for n in (3, 4)])
    with pytest.raises(ValueError, match=r"attention: layers differ.*within_layers=True"):
        head_similarity(maps)
    assert head_similarity(maps, within_layers=True).names == ("L3H0", "L4H0")


def test_nearest_and_names() -> None:
    near = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    found = head_similarity(torch.stack([torch.eye(2), torch.eye(2).flip(0), near]))
    nearest = {name: other for name, other, _ in found.nearest()}
    assert nearest == {"L0H0": "L0H2", "L0H1": "L0H2", "L0H2": "L0H0"}
    with pytest.raises(KeyError, match="no head 'L1H0'; the heads are L0H0 to L0H2"):
        found.between("L0H0", "L1H0")
    alone = head_similarity(torch.eye(2)).nearest()
    assert alone[0][:2] == ("L0H0", None)
    assert math.isnan(alone[0][2])


def test_redundancy_per_layer() -> None:
    uniform = torch.full((3, 3), 1 / 3)
    layers = [
        torch.stack([torch.eye(3), torch.eye(3), uniform, uniform]),
        torch.stack([torch.eye(3), uniform, torch.eye(3).roll(1, 0), torch.eye(3).roll(2, 0)]),
    ]
    found = head_redundancy(layers)
    assert found.share.tolist() == [1, 0]
    assert found.redundant == ("L0H0", "L0H1", "L0H2", "L0H3")
    assert [name for name, _, _ in found.nearest][4:] == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert head_redundancy(layers, threshold=1.0).share.tolist() == [1, 1]
    assert head_redundancy(torch.eye(3)).share.tolist() == [0]


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_redundancy_threshold_is_a_distance(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold: "):
        head_redundancy(torch.eye(3), threshold=threshold)


def test_options_of_another_kind_are_named() -> None:
    weights = torch.eye(3).repeat(2, 1, 1)
    for threshold in (None, "x", [0.1], True, torch.ones(2)):
        with pytest.raises(TypeError, match=r"^threshold: got .*; expected a distance, 0 to 1"):
            head_redundancy(weights, threshold=threshold)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^threshold: nan; expected"):
        head_redundancy(weights, threshold=math.nan)
    assert head_redundancy(weights, threshold=torch.tensor(0.5)).threshold == 0.5  # type: ignore[arg-type]
    for flag in (None, "no", torch.ones(2)):
        with pytest.raises(TypeError, match=r"^within_layers: got .*; expected True or False"):
            head_similarity(weights, within_layers=flag)  # type: ignore[arg-type]
    assert head_similarity(weights, within_layers=np.True_).names  # type: ignore[arg-type]
