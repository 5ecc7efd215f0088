from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attncheck.attention import LayerAttention, as_attention
from attncheck.patterns.catalogue import PATTERNS
from attncheck.patterns.pattern import Option
from attncheck.strategies import (
    QueryKeyValue,
    attention_layers,
    attention_masks,
    attention_shapes,
    attention_weights,
    pattern_options,
    qkv,
    token_sequences,
)
from attncheck.tolerances import TOLERANCES, tolerance_for
from tests.strategies.finding import smallest

DTYPES = st.sampled_from([getattr(torch, name) for name in TOLERANCES])
CAUSAL = sorted(name for name, entry in PATTERNS.items() if entry.direction == "any")


def off_diagonal(weights: Tensor) -> Tensor:
    return weights * (1 - torch.eye(*weights.shape[-2:]))


@given(attention_weights(shape=attention_shapes("any"), dtype=DTYPES))
def test_weights_are_weights(weights: Tensor) -> None:
    assert weights.ndim == 4
    assert (weights >= 0).all()
    error = (weights.double().sum(-1) - 1).abs().max()
    assert error <= tolerance_for(weights.dtype).row_sum
    as_attention(weights)


@given(attention_weights(shape=attention_shapes("cache"), causal=True))
def test_causal_weights_give_nothing_to_later_keys(weights: Tensor) -> None:
    behind = weights.shape[-1] - weights.shape[-2]
    assert (weights.triu(behind + 1) == 0).all()


@given(st.sampled_from(CAUSAL).flatmap(lambda name: attention_weights(name, causal=True)))
def test_causal_patterns_give_nothing_to_later_keys(weights: Tensor) -> None:
    assert (weights.triu(1) == 0).all()


@settings(max_examples=150)
@given(attention_weights(st.sampled_from(sorted({*PATTERNS, "mixed", "heterogeneous"}))))
def test_every_pattern_gives_weights(weights: Tensor) -> None:
    as_attention(weights)


@given(attention_weights("prev", shape=attention_shapes(min_length=2), noise=0.25))
def test_noise_leaves_the_pattern_its_share(weights: Tensor) -> None:
    assert weights.diagonal(-1, -2, -1).min() >= 0.75 - 1e-6


def test_noise_reaches_its_limit_and_shrinks_to_none() -> None:
    strategy = attention_weights("previous_token", shape=(1, 1, 3, 3), noise=0.5)
    smallest(strategy, lambda a: bool(a[0, 0, 2, 1] < 0.55))
    clean = smallest(strategy)[0, 0].tolist()
    assert clean == [pytest.approx([1 / 3] * 3), [1, 0, 0], [0, 1, 0]]


@given(st.data(), token_sequences(start=0, repeated=True))
def test_tokens_reach_the_generator(data: st.DataObject, tokens: list[int]) -> None:
    shape = (1, 2, len(tokens), len(tokens))
    weights = data.draw(
        attention_weights("induction", shape=shape, causal=True, noise=0, tokens=tokens)
    )
    for i, token in enumerate(tokens):
        targets = [j for j in range(1, i) if tokens[j - 1] == token]
        if targets:
            assert weights[0, :, i, targets].sum(-1).tolist() == pytest.approx([1.0, 1.0])


def test_given_options_are_not_drawn() -> None:
    strategy = attention_weights("offset", shape=(1, 1, 5, 5), noise=0, offset=3)
    assert smallest(strategy)[0, 0, 4].tolist() == [0, 1, 0, 0, 0]


@given(attention_weights("previous_token", shape=(1, 1, 3, 7), noise=0))
def test_fewer_queries_than_keys_are_the_last_positions(weights: Tensor) -> None:
    assert weights[0, 0].argmax(-1).tolist() == [3, 4, 5]


@pytest.mark.parametrize("name", sorted(PATTERNS))
@given(data=st.data(), seq_len=st.integers(1, 9))
@settings(max_examples=25)
def test_options_lie_in_the_ranges_of_the_catalogue(
    name: str, data: st.DataObject, seq_len: int
) -> None:
    options = data.draw(pattern_options(name, seq_len))
    known = {option.name: option for option in PATTERNS[name].options}
    assert set(options) <= set(known)
    for option, value in options.items():
        low, high = known[option].bounds(seq_len)
        known[option].checked(value, name)
        if known[option].kind in ("int", "float"):
            assert low <= value <= high
            assert value not in known[option].excluded


def test_every_number_option_of_the_catalogue_is_drawn() -> None:
    drawn_kinds = ("int", "float", "ints")
    for name, entry in PATTERNS.items():
        for option in entry.options:
            if option.kind in drawn_kinds:
                smallest(pattern_options(name, 9), lambda held, option=option: option.name in held)


def test_options_that_fit_no_value_are_left_out() -> None:
    assert smallest(pattern_options("offset", 2)) == {}
    with pytest.raises(Exception, match="No examples found"):
        smallest(pattern_options("offset", 2), bool)
    assert isinstance(PATTERNS["offset"].options[0], Option)


def test_weights_cover_even_rows_exact_zeros_ties_and_near_certainty() -> None:
    shape = (1, 1, 1, 4)
    assert smallest(attention_weights(shape=shape)).tolist() == [[[[0.25] * 4]]]
    smallest(attention_weights(shape=shape), lambda a: bool((a == 1).any()))
    smallest(attention_weights(shape=shape), lambda a: bool(((a > 0) & (a < 1e-6)).any()))
    smallest(attention_weights(shape=shape), lambda a: (a == 0.5).sum() == 2)
    smallest(attention_weights(shape=shape), lambda a: len(set(a.flatten().tolist())) == 4)


PLANTED: dict[str, tuple[Callable[[Tensor], bool], list[list[list[float]]]]] = {
    "no weight beside the diagonal is large": (
        lambda a: bool((off_diagonal(a) > 0.9).any()),
        [[[0, 1], [0, 1]]],
    ),
    "no weight is 1": (lambda a: bool((a == 1).any()), [[[1]]]),
    "no column gets more than one row": (
        lambda a: bool((a.sum(-2) > 1.01).any()),
        [[[0, 1], [0, 1]]],
    ),
    "heads are alike": (
        lambda a: a.shape[1] > 1 and not torch.equal(a[:, 0], a[:, 1]),
        [[[0.5, 0.5], [0.5, 0.5]], [[0, 1], [0, 1]]],
    ),
}
"""What a wrong test would claim, and the smallest weights ``(head, query, key)`` against it."""


@pytest.mark.parametrize("claim", PLANTED)
def test_planted_bugs_shrink_to_two_tokens_and_simple_numbers(claim: str) -> None:
    refutes, expected = PLANTED[claim]
    assert smallest(attention_weights(), refutes).tolist() == [expected]


def test_a_planted_bug_in_large_shapes_still_shrinks() -> None:
    shapes = attention_shapes(max_length=16, max_heads=4, max_batch=4)
    strategy = attention_weights(shape=shapes)
    found = smallest(strategy, lambda a: bool((off_diagonal(a) > 0.9).any()))
    assert found.tolist() == [[[[0, 1], [0, 1]]]]


def test_a_rare_planted_bug_leaves_only_the_row_that_matters() -> None:
    def refutes(weights: Tensor) -> bool:
        previous = weights.diagonal(-1, -2, -1)
        return previous.shape[-1] > 1 and bool((previous.mean(-1) > 0.6).any())

    found = smallest(attention_weights(dtype=torch.float64), refutes)
    assert found.shape == (1, 1, 3, 3)
    even, others = [1 / 3] * 3, [row for row in found[0, 0].tolist() if row != [1 / 3] * 3]
    assert found[0, 0, 0].tolist() == even
    assert others in ([[1, 0, 0]], [[0, 1, 0]])


@given(attention_layers())
def test_layers_agree_with_their_mask(layer: LayerAttention) -> None:
    as_attention(layer)
    visible = layer.visible().expand(layer.weights.shape)
    assert (layer.weights.masked_fill(visible, 0) == 0).all()
    sums = layer.weights.double().sum(-1)
    seen = visible.any(-1)
    assert sums[seen].tolist() == pytest.approx([1.0] * int(seen.sum()), abs=1e-5)
    assert (sums[~seen] == 0).all()
    assert not layer.causal or layer.n_query <= layer.n_key


def test_layers_reach_padding_causality_cross_attention_and_blind_rows() -> None:
    smallest(attention_layers(), lambda layer: layer.causal and layer.n_query < layer.n_key)
    smallest(attention_layers(), lambda layer: layer.kind == "cross" and layer.mask is not None)
    blind = smallest(attention_layers(), lambda layer: not layer.visible().any(-1).all())
    assert blind.weights.shape[:2] == (1, 1)
    assert blind.n_key <= 2
    both = smallest(attention_layers(), lambda held: held.mask is not None and held.causal)
    assert both.weights.shape == (1, 1, 1, 1)
    assert smallest(attention_layers(masks=()), lambda layer: layer.causal).mask is None
    assert not smallest(attention_layers(causal=False)).causal


@pytest.mark.parametrize("noise", [-0.1, 1.5])
def test_noise_is_a_share(noise: float) -> None:
    with pytest.raises(ValueError, match=r"noise: got .* expected a share from 0 to 1"):
        attention_weights(noise=noise)


def test_options_without_a_pattern_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"offset: only a pattern takes these; pass pattern="):
        attention_weights(offset=2)


@pytest.mark.parametrize(
    "strategy",
    [
        attention_weights(shape=(1, 1, 3, 2), causal=True),
        attention_weights("diagonal", shape=(1, 1, 3, 2)),
    ],
)
def test_more_queries_than_keys_fit_no_pattern(strategy: st.SearchStrategy[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"shape: 3 queries for 2 keys"):
        smallest(strategy)


@pytest.mark.parametrize("shape", [(2, 2), (1, 1, 0, 2), (1, 1, 2.0, 2)])
def test_impossible_shapes_are_an_error(shape: Any) -> None:
    strategies: list[st.SearchStrategy[Any]] = [
        attention_weights(shape=shape),
        attention_layers(shape=shape),
        attention_masks(shape),
        qkv(shape=shape),
    ]
    for strategy in strategies:
        with pytest.raises(
            (TypeError, ValueError), match=r"shape: .*expected \(batch, head, query, key\)"
        ):
            smallest(strategy)


def test_dtypes_without_fractions_are_an_error() -> None:
    for strategy in (attention_weights, attention_layers, qkv):
        with pytest.raises(ValueError, match=r"dtype: got torch\.int64; expected a floating one"):
            smallest(strategy(dtype=torch.int64))


def test_unknown_names_are_an_error_before_anything_is_drawn() -> None:
    with pytest.raises(ValueError, match="pattern: unknown name 'diagnal'"):
        attention_weights("diagnal")
    with pytest.raises(ValueError, match="pattern: unknown name 'diagnal'"):
        pattern_options("diagnal", 8)
    with pytest.raises(ValueError, match=r"masks: got \['banded'\]; expected a list of some of"):
        attention_layers(masks=["banded"])


def test_options_are_drawn_under_an_alias_too() -> None:
    assert smallest(pattern_options("sliding_window", 8), bool).keys() <= {"width", "decay"}


def share(strategy: st.SearchStrategy[Any], condition: Callable[[Any], Any]) -> float:
    """How much of what a strategy draws meets a condition."""
    met: list[bool] = []

    @settings(max_examples=200, database=None, derandomize=True, phases=[Phase.generate])
    @given(strategy)
    def draw(example: Any) -> None:
        met.append(bool(condition(example)))

    draw()
    return sum(met) / len(met)


def test_most_examples_are_not_the_trivial_one() -> None:
    def uneven(weights: Tensor) -> bool:
        return not torch.equal(weights[..., :1].expand_as(weights), weights)

    def has_uneven_scores(inputs: QueryKeyValue) -> bool:
        groups = inputs.query.shape[1] // inputs.key.shape[1]
        return uneven(inputs.query @ inputs.key.repeat_interleave(groups, 1).mT)

    assert share(attention_weights(shape=(1, 2, 4, 4)), uneven) > 0.6
    assert share(attention_weights(shape=(2, 3, 6, 6)), uneven) > 0.8
    assert share(qkv(shape=(1, 2, 4, 4)), has_uneven_scores) > 0.4
    assert share(qkv(shape=(1, 2, 4, 4)), lambda inputs: uneven(inputs.value.mT)) > 0.4
    assert share(attention_layers(), lambda layer: (layer.weights.sum(-1) == 0).any()) > 0.04
    assert 0.2 < share(attention_layers(), lambda layer: layer.mask is None) < 0.6
