"""`profile_model`: the profile of the maps, without ever holding the maps."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import (
    METRICS,
    AttentionExtractor,
    CaptureError,
    profile_attention,
    profile_dataset,
    profile_model,
)
from attncheck.attention import LayerAttention
from attncheck.attention.maps import Tokens
from attncheck.evaluate import profile_layer, walk
from attncheck.profile import LayerProfile
from tests.capture.reference import Heads, stack

X = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 9, (2, 16), generator=torch.Generator().manual_seed(1))


def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Language(nn.Module):
    """Embeds token ids in front of a stack."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 16)
        self.layers = stack(attend, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.layers(self.embedding(input_ids))  # type: ignore[no-any-return]


def test_it_is_the_profile_of_the_maps() -> None:
    model = Language()
    profile = profile_model(model, IDS)
    reference = profile_attention(AttentionExtractor(model).get_attention(IDS))
    assert profile.names == reference.names
    assert set(profile.measures) == set(reference.measures) - {"gini"}
    for measure in profile.measures:
        np.testing.assert_allclose(profile[measure], reference[measure], atol=1e-6)


def test_token_patterns_come_from_the_ids_or_from_the_caller() -> None:
    model = Language()
    by_ids = profile_model(model, input_ids=IDS)["duplicate_token"]
    given = profile_model(model.layers, model.embedding(IDS).detach(), tokens=IDS)
    np.testing.assert_allclose(by_ids, given["duplicate_token"], atol=1e-6)
    with pytest.raises(ValueError, match="tokens: 3 tokens for 16 keys"):
        profile_model(model, IDS, tokens=["a", "b", "c"])


def test_one_layer_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(layer: LayerAttention, tokens: Tokens | None) -> LayerProfile:
        nonlocal most
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive) + 1)
        alive.append(weakref.ref(layer.weights))
        return profile_layer(layer, tokens)

    profile_model(stack(attend, 4), X, evaluator=watched)
    assert len(alive) == 4
    assert most == 1


def test_under_autocast_it_is_the_profile_of_the_maps() -> None:
    model = stack(attend, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        profile = profile_model(model, X)
        maps = AttentionExtractor(model).get_attention(X)
    reference = profile_attention(maps)
    assert all(why.startswith("blocked") for why in profile.evaluators.values())
    for measure in profile.measures:
        np.testing.assert_allclose(profile[measure], reference[measure], atol=1e-5)
    full = profile_model(model, X)
    assert not np.array_equal(profile["entropy"], full["entropy"])


def _peak(run: Callable[[], object]) -> int:
    """Bytes of tensors that a call holds at its peak, by the allocator's own count."""
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(itertools.accumulate(change for _, change in sorted(changes)))


def _above_forward(length: int, depth: int) -> int:
    model, x = stack(attend, depth), torch.randn(1, length, 16)
    return _peak(lambda: profile_model(model, x)) - _peak(lambda: model(x))


def test_memory_above_the_forward_is_linear_in_length_and_not_in_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walk, "BLOCK_WEIGHTS", {"cpu": 1})  # one head at a time, as if longer
    _above_forward(64, 1)
    short, long, deep = _above_forward(512, 2), _above_forward(1024, 2), _above_forward(512, 6)
    assert 0 < long < 2.2 * short
    assert long < 4 * 1024 * 1024  # a float32 matrix of one head
    assert deep - short < 4 * 512 * 512 / 2  # the profile itself grows, by sums of a row's length


def test_a_failed_capture_is_no_profile() -> None:
    with pytest.raises(CaptureError, match="captured no attention"):
        profile_model(nn.Linear(16, 16), X)


def test_nan_weights_are_told() -> None:
    def broken(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q.clone()
        q[:, 1, 3] = float("nan")
        return F.scaled_dot_product_attention(q, k, v)

    model = nn.Sequential(stack(attend, 1), stack(broken, 1))
    with pytest.warns(UserWarning, match="NaN or infinite attention weights in 1 of .*L1H1 \\(1"):
        profile = profile_model(model, X)
    assert profile.not_finite == ("L1H1",)
    labels = profile.classify()
    assert (labels["L1H1"].label, labels["L1H1"].note) == (
        "undetermined",
        "NaN or infinite weights",
    )
    assert "1 with NaN or infinity" in repr(profile)
    lines = {line[:4]: line for line in profile.table().splitlines()}
    assert lines["L1H1"].split()[1:] == ["nan"] * 5
    assert "nan" not in lines["L1H0"]


@pytest.mark.parametrize(
    ("shape", "words"), [((0, 5, 16), "no sequences"), ((2, 0, 16), "no queries, no keys")]
)
@pytest.mark.parametrize("own", [False, True])
def test_an_input_without_tokens_or_sequences_is_said(
    shape: tuple[int, ...], words: str, own: bool
) -> None:
    model = stack(by_hand if own else attend, 1)
    with pytest.raises(ValueError, match=rf"^layer 0, 0: empty, has {words}: \(batch, head"):
        profile_model(model, torch.zeros(shape))
    extractor = AttentionExtractor(model, store="profile")
    with pytest.raises(ValueError, match=f"has {words}"):
        extractor.watch(torch.zeros(shape))
    for store in ("weights", "qk"):
        maps = AttentionExtractor(model, store=store).get_attention(torch.zeros(shape))
        assert maps[0].shape == (shape[0], 4, shape[1], shape[1])
        with pytest.raises(ValueError, match=f"has {words}"):
            profile_attention(maps)


def by_hand(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def test_no_tokens_under_a_mask_are_captured_too() -> None:
    def masked(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(1, 1, q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    model = stack(masked, 1)
    assert AttentionExtractor(model).get_attention(X[:, :0])[0].shape == (2, 4, 0, 0)
    with pytest.raises(ValueError, match="queries: the layer has no queries to choose from"):
        AttentionExtractor(model, queries=-1).get_attention(X[:, :0])


def test_what_is_no_evaluator_is_named() -> None:
    model = stack(attend, 1)
    with pytest.raises(TypeError, match=r"^evaluator: 3; expected a function \(layer, tokens\)"):
        profile_model(model, X, evaluator=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^evaluator: 'dense'; expected"):
        AttentionExtractor(model, evaluator="dense")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluator: returned NoneType for layer 0; expected"):
        profile_model(model, X, evaluator=lambda layer, tokens: None)  # type: ignore[arg-type, return-value]


def test_a_measure_that_sorts_rows_is_there_if_asked_for() -> None:
    model = Language()
    profile = profile_model(model, IDS)
    with pytest.raises(KeyError, match=r"gini was not measured.*pass also=\['gini'\] to prof"):
        profile["gini"]
    profile = profile_model(model, IDS, also=["gini"])
    for name in METRICS:
        assert np.isfinite(profile[name]).all()
    reference = profile_attention(AttentionExtractor(model).get_attention(IDS), also=["gini"])
    np.testing.assert_allclose(profile["gini"], reference["gini"], atol=1e-6)
    whole = profile_dataset(model, [IDS[:1], IDS[1:]], also=["gini"], progress=False)
    np.testing.assert_allclose(whole["gini"], profile["gini"], atol=1e-6)
    with pytest.raises(ValueError, match="also: no measure 'ginny'; on request there is gini"):
        profile_model(model, IDS, also=["ginny"])
