"""Generators: valid at any length and dtype, seeded, noise a share of the mass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attncheck.attention import as_attention
from attncheck.patterns import PATTERNS, collect_evidence, create_synthetic_attention
from attncheck.tolerances import tolerance_for

BUILDABLE = [*PATTERNS, "mixed", "heterogeneous"]
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 64, 127, 128, 255, 256, 511, 512]


def require_valid(weights: torch.Tensor, causal: bool) -> None:
    assert torch.isfinite(weights).all()
    assert weights.min() >= 0
    error = (weights.sum(-1, dtype=torch.float64) - 1).abs().max()
    assert error <= tolerance_for(weights.dtype).row_sum
    if causal:
        assert not weights.triu(1).any()


@pytest.mark.parametrize("pattern", BUILDABLE)
@pytest.mark.parametrize("causal", [False, True])
def test_valid_at_every_length(pattern: str, causal: bool) -> None:
    if pattern == "next_token" and causal:
        pytest.skip("looks ahead")
    for seq_len in LENGTHS:
        noise = ("uniform", "dirichlet", "logit")[seq_len % 3]
        weights = create_synthetic_attention(
            seq_len, pattern, 0.2, causal=causal, noise=noise, seed=seq_len
        )
        assert weights.shape == (seq_len, seq_len)
        require_valid(weights, causal)


@given(
    seq_len=st.integers(1, 80),
    pattern=st.sampled_from(BUILDABLE),
    level=st.floats(0, 1),
    noise=st.sampled_from(["uniform", "dirichlet", "logit"]),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    strength=st.floats(0, 1),
)
def test_valid_whatever_the_dials(
    seq_len: int,
    pattern: str,
    level: float,
    noise: Any,
    causal: bool,
    dtype: torch.dtype,
    strength: float,
) -> None:
    causal = causal and pattern != "next_token"
    weights = create_synthetic_attention(
        seq_len,
        pattern,
        level,
        causal=causal,
        noise=noise,
        dtype=dtype,
        seed=0,
        strength=strength,
        heads=2,
    )
    assert weights.dtype == dtype
    assert weights.shape == (2, seq_len, seq_len)
    require_valid(weights, causal)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (5, 5)),
        ({"heads": 3}, (3, 5, 5)),
        ({"batch": 2}, (2, 1, 5, 5)),
        ({"batch": 2, "heads": 3}, (2, 3, 5, 5)),
    ],
)
def test_shape_follows_batch_and_heads(sizes: dict[str, int], shape: tuple[int, ...]) -> None:
    assert create_synthetic_attention(5, **sizes).shape == shape  # type: ignore[arg-type]


def test_seeded_and_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = create_synthetic_attention(9, "heterogeneous", 0.3, seed=4)
    second = create_synthetic_attention(9, "heterogeneous", 0.3, seed=4)
    other = create_synthetic_attention(9, "heterogeneous", 0.3, seed=5)
    free = create_synthetic_attention(9, "local", 0.3)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(free, create_synthetic_attention(9, "local", 0.3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_heads_and_batch_differ_in_their_noise() -> None:
    weights = create_synthetic_attention(6, batch=2, heads=2, seed=0)
    assert len(torch.unique(weights.flatten(0, 1), dim=0)) == 4


@pytest.mark.parametrize("noise", ["uniform", "dirichlet"])
@pytest.mark.parametrize("seq_len", [8, 64, 512])
def test_noise_is_a_share_of_the_mass_at_any_length(noise: Any, seq_len: int) -> None:
    weights = create_synthetic_attention(
        seq_len, "diagonal", 0.2, noise=noise, seed=1, heads=4, dtype=torch.float64
    )
    on_diagonal = weights.diagonal(dim1=-2, dim2=-1).mean()
    assert float(on_diagonal) == pytest.approx(0.8 + 0.2 / seq_len, abs=0.02)


def test_strength_is_the_lift() -> None:
    for pattern in ("previous_token", "first_token", "broadcast", "block"):
        weights = create_synthetic_attention(
            64, pattern, 0, causal=True, strength=0.4, dtype=torch.float64
        )
        evidence = collect_evidence(as_attention(weights, causal=True).layers[0])
        assert evidence.lift(pattern)[0] == pytest.approx(0.4)


def test_rows_without_a_target_are_even() -> None:
    weights = create_synthetic_attention(5, "offset", 0, causal=True, offset=3)
    assert torch.equal(weights[2], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0]))
    assert weights[3].tolist() == [1, 0, 0, 0, 0]


def test_logit_noise_multiplies() -> None:
    weights = create_synthetic_attention(64, "uniform", 1.0, noise="logit", seed=0, heads=8)
    assert float(weights.log().std(-1).mean()) == pytest.approx(1.0, abs=0.05)
    sharp = create_synthetic_attention(8, "diagonal", 1.0, noise="logit")
    assert torch.equal(sharp, torch.eye(8))


def test_blocks_and_mixtures() -> None:
    blocks = create_synthetic_attention(6, "block", 0, cuts=(2,), dtype=torch.float64).numpy()
    assert np.allclose(blocks[:2, :2], 0.5)
    assert np.allclose(blocks[2:, 2:], 0.25)
    both = create_synthetic_attention(
        6, "mixed", 0, patterns=("first_token", "diagonal"), weights=(1, 3)
    )
    assert both[4].tolist() == [0.25, 0, 0, 0, 0.75, 0]


def test_tokens_decide() -> None:
    weights = create_synthetic_attention(5, "induction", 0, causal=True, tokens=list("abcab"))
    assert weights[3].tolist() == [0, 1, 0, 0, 0]
    commas = create_synthetic_attention(4, "delimiter", 0, tokens=["a", ",", "b", "."])
    assert commas[0].tolist() == [0, 0.5, 0, 0.5]
    chosen = create_synthetic_attention(3, "delimiter", 0, tokens=[4, 5, 6], delimiters=[6])
    assert chosen[1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "seq_len: 0; expected at least 1"),
        ((4, "nope"), {}, "unknown name 'nope'"),
        ((4, "diagonal", 1.5), {}, "noise_level: 1.5; expected a share"),
        ((4, "diagonal", -1), {"noise": "logit"}, "standard deviation"),
        ((4,), {"noise": "pink"}, "noise: unknown kind 'pink'"),
        ((4, "next_token"), {"causal": True}, "causal: next_token looks at a later key"),
        ((4, "offset"), {"causal": True, "offset": -2}, "looks ahead"),
        ((4, "diagonal"), {"width": 2}, "width: unknown option for pattern 'diagonal'"),
        ((4, "local"), {"width": 0}, "width: 0 .* from 1"),
        ((4,), {"heads": 0}, "heads: 0"),
        ((4,), {"strength": 2}, "strength: 2"),
        ((4, "induction"), {"tokens": [1, 2]}, "tokens: 2 tokens for seq_len 4"),
        ((4, "induction"), {"tokens": "abcd"}, "got one string"),
        ((4, "delimiter"), {"tokens": [1, 2, 3, 4]}, "say which of them are delimiters"),
        ((4, "undetermined"), {}, "none can be built"),
        ((4, "mixed"), {"weights": (1, 0)}, "expected 2 positive numbers"),
        ((4,), {"batch": 3, "tokens": [[1, 2, 3, 4]] * 2}, "tokens: 2 sequences for batch 3"),
        ((4,), {"dtype": torch.int32}, "dtype: torch.int32 holds no fractions; expected one such"),
        ((4,), {"dtype": torch.bool}, "dtype: torch.bool holds no fractions"),
        ((4,), {"device": "foo"}, "device: 'foo' is not there .*; expected a device of this"),
        ((4,), {"device": "cuda:77"}, "device: 'cuda:77' is not there .*such as 'cpu'"),
        ((4,), {"seed": 2**64}, "seed: 18446744073709551616; expected at most"),
    ],
)
def test_errors_name_argument_and_way_out(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_synthetic_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((2.5,), {}, "seq_len: 2.5 is float; expected a whole number"),
        ((True,), {}, "seq_len: True is bool"),
        ((np.bool_(True),), {}, "seq_len: .*True.* is bool"),
        ((4,), {"heads": "2"}, "heads: '2' is str"),
        ((4,), {"dtype": "float32"}, "dtype: 'float32' is str; expected a dtype such as torch.fl"),
        ((4,), {"seed": "a"}, "seed: 'a' is str; expected a whole number"),
        ((4, "offset"), {"offset": 2.0}, "offset: 2.0 is float; expected a whole number"),
        ((4, "local"), {"strength": "1"}, "strength: got str; expected a number"),
    ],
)
def test_arguments_of_another_kind_are_named(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        create_synthetic_attention(*arguments, **options)


@pytest.mark.parametrize("whole", [np.int64, np.uint8, torch.tensor])
def test_whole_numbers_of_any_library_are_taken(whole: Any) -> None:
    found = create_synthetic_attention(
        whole(8), "offset", heads=whole(2), batch=whole(1), seed=whole(3), offset=whole(2)
    )
    same = create_synthetic_attention(8, "offset", heads=2, batch=1, seed=3, offset=2)
    assert torch.equal(found, same)
    share = create_synthetic_attention(8, strength=np.float32(0.5), seed=0)
    assert torch.equal(share, create_synthetic_attention(8, strength=0.5, seed=0))
