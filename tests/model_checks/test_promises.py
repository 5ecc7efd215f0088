"""Each promise on a decoder in plain torch: kept by a right one, broken by each mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attncheck
from attncheck import CheckFailure, ModelSubject, check_model
from attncheck.model_checks import PROMISES
from tests.model_checks.decoder import WINDOW, Decoder, step, token_ids


def subject(fault: str = "", layer: int = 1, **options: Any) -> ModelSubject:
    window = WINDOW if "window" in fault or options.get("window") else None
    given = {"kind": "decoder", "step": step, "segments": "segment_ids", "output": 0}
    model = Decoder(fault, layer, window)
    return ModelSubject.of(model, token_ids(), **{**given, "window": window, **options})


CAUGHT = {
    "future": "no-future-leakage",
    "sequence mean": "no-future-leakage",
    "softmax dim": "no-future-leakage",
    "padding mask": "padding-invariant",
    "left positions": "padding-invariant",
    "batch norm": "batch-invariant",
    "cache order": "cache-consistent",
    "cache position": "cache-consistent",
    "window + 1": "window-respected",
    "window - 1": "window-respected",
    "segments": "segments-isolated",
    "detached key": "gradients-flow",
    "state": "deterministic",
    "dropout": "dropout-off-in-eval",
    "no positions": "padding-invariant",
}


@pytest.mark.parametrize("window", [None, WINDOW])
def test_a_right_model_keeps_every_promise(window: int | None) -> None:
    report = check_model(subject(window=window))
    kept = {outcome.id for outcome in report.outcomes if outcome.status == "passed"}
    skipped = {"permutation-equivariant"} | ({"window-respected"} if window is None else set())
    assert kept == set(PROMISES) - skipped


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_right_model_keeps_them_in_every_dtype(dtype: torch.dtype) -> None:
    held = subject(window=WINDOW)
    held.model.to(dtype)
    assert check_model(held).passed


@pytest.mark.parametrize("fault", [name for name in CAUGHT if name != "no positions"])
def test_each_mistake_breaks_its_promise(fault: str) -> None:
    report = check_model(subject(fault), raises=False)
    broken = {outcome.id for outcome in report.outcomes if outcome.status == "failed"}
    assert CAUGHT[fault] in broken


def test_lost_positions_are_found() -> None:
    """Below causal attention order shows all the same, so that this takes an encoder."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 6, 8)
    attncheck.assert_permutation_equivariant(layer, x)
    with pytest.raises(CheckFailure, match="order makes no difference"):
        attncheck.assert_position_sensitive(layer, x, kind="encoder")
    ordered = ModelSubject.of(Decoder(), token_ids(), kind="decoder", output=0)
    attncheck.assert_position_sensitive(ordered)
    with pytest.raises(CheckFailure, match="order changes the output"):
        attncheck.assert_permutation_equivariant(ordered)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_layer_that_parts_first_is_named(layer: int) -> None:
    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_no_future_leakage(subject("future", layer))
    finding = caught.value.finding
    assert dict(finding.facts)["layer"] == f"blocks.{layer}.attn parts first"
    assert {offender.head for offender in finding.offenders} == {f"L{layer}H0", f"L{layer}H1"}
    worst = finding.offenders[0]
    assert worst.at.key > worst.at.query
    assert worst.worst > 0.01
    text = str(caught.value)
    assert text.splitlines()[0].startswith("sees the future: ")
    assert "noise" in text
    assert "exactly 0 expected" in text
    assert max(map(len, text.splitlines())) <= 72


def test_a_mistake_outside_attention_is_named_too() -> None:
    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_batch_invariant(subject("batch norm", 1))
    facts = dict(caught.value.finding.facts)
    assert facts["layer"] == "blocks.1 parts first"
    assert "of sequence 0 on the others" in facts["gradient"]


def test_gradients_name_the_projection() -> None:
    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_gradients_flow(subject("detached key", 0))
    offenders = caught.value.finding.offenders
    assert [offender.head for offender in offenders] == ["blocks.0.attn.key.weight"]


class Alone(nn.Module):
    """A model that computes its attention itself, without a module for it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)  # of which most tokens are not in the input
        self.key = nn.Linear(8, 8)
        self.query = nn.Linear(8, 8)

    def forward(self, ids: Tensor, detached: bool = False) -> Tensor:
        x = self.embed(ids)
        key = self.key(x).detach() if detached else self.key(x)
        return nn.functional.scaled_dot_product_attention(self.query(x), key, x, is_causal=True)


def test_gradients_of_a_model_that_is_its_own_attention() -> None:
    ids = torch.arange(12).view(2, 6)
    attncheck.assert_gradients_flow(Alone(), ids)
    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_gradients_flow(Alone(), (ids, True))
    assert {offender.head for offender in caught.value.finding.offenders} == {"Alone.key.weight"}


def test_perturbation_alone_would_miss_what_gradients_find() -> None:
    """A leak below the noise of the output is no zero."""

    class Whisper(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-9 * x.mean(1, keepdim=True)

    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_no_future_leakage(Whisper(), torch.randn(2, 6, 4))
    facts = dict(caught.value.finding.facts)
    assert set(facts) == {"gradient", "noise"}


def test_perturbation_finds_what_has_no_gradient() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.sum(1, keepdim=True).round()

    with pytest.raises(CheckFailure) as caught:
        attncheck.assert_no_future_leakage(Rounded(), torch.randn(2, 6, 4))
    assert "perturbed" in dict(caught.value.finding.facts)


def test_segments_at_both_doors() -> None:
    packed = torch.block_diag(torch.full((2, 2), 0.5), torch.full((3, 3), 1 / 3))
    attncheck.assert_segments_isolated(packed, [0, 0, 1, 1, 1])
    attncheck.assert_segments_isolated(packed, segment_ids=[0, 0, 1, 1, 1])
    with pytest.raises(CheckFailure, match="not isolated: 4 of 12"):
        attncheck.assert_segments_isolated(packed, segment_ids=[0, 0, 0, 1, 1])
    ids, documents = token_ids(), [0] * 3 + [1] * 4 + [2] * 5
    options: Any = {"kind": "decoder", "segments": "segment_ids", "output": 0}
    with pytest.raises(CheckFailure, match="documents see each other"):
        attncheck.assert_segments_isolated(Decoder("segments"), ids, **options)
    with pytest.raises(ValueError, match="no argument of it tells documents apart"):
        attncheck.assert_segments_isolated(Decoder(), ids)
    with pytest.raises(ValueError, match="numbered in their order"):
        attncheck.assert_segments_isolated(Decoder(), ids, segment_ids=documents[::-1], **options)


def test_packed_documents_come_out_alone_where_positions_start_again() -> None:
    class Packed(Decoder):
        def forward(self, input_ids: Tensor, segment_ids: Any = None, **kwargs: Any) -> Any:
            positions = None
            if segment_ids is not None:
                starts = torch.searchsorted(segment_ids.contiguous(), segment_ids.contiguous())
                positions = torch.arange(input_ids.shape[1]) - starts
            return super().forward(input_ids, position_ids=positions, segment_ids=segment_ids)

    documents = [0] * 3 + [1] * 4 + [2] * 5
    attncheck.assert_segments_isolated(
        Packed(),
        token_ids(),
        segment_ids=documents,
        kind="decoder",
        segments="segment_ids",
        output=0,
    )


def test_torch_layers_need_no_options() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    report = check_model(encoder, torch.randn(2, 6, 8), kind="set")
    statuses = {outcome.id: outcome.status for outcome in report.outcomes}
    for id in ("padding-invariant", "batch-invariant", "backends-agree", "gradients-flow"):
        assert statuses[id] == "passed", report


def test_nothing_is_left_behind() -> None:
    held = subject(window=WINDOW)
    held.model.train()
    held.model.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in held.model.state_dict().items()}
    modes = [module.training for module in held.model.modules()]
    state = torch.random.get_rng_state()
    check_model(held)
    assert modes == [module.training for module in held.model.modules()]
    assert torch.equal(state, torch.random.get_rng_state())
    after = held.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in held.model.parameters())
    assert not any(module._forward_hooks for module in held.model.modules())


def test_a_window_of_any_library_is_pythons_own() -> None:
    window = subject(window=torch.tensor(WINDOW)).window
    assert (type(window), window) == (int, WINDOW)


def test_wrong_use_is_told() -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        attncheck.assert_deterministic(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs: missing"):
        attncheck.assert_deterministic(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="unknown argument wndow"):
        attncheck.assert_window_respected(Decoder(), token_ids(), wndow=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="side: 'top'"):
        attncheck.assert_padding_invariant(subject(), side="top")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes no padding mask"):
        attncheck.assert_padding_invariant(nn.Linear(4, 4), torch.randn(2, 6, 4))
    with pytest.raises(ValueError, match="it takes no cache"):
        attncheck.assert_cache_consistent(nn.Linear(4, 4), torch.randn(2, 6, 4))
    with pytest.raises(ValueError, match="no layer has one"):
        attncheck.assert_window_respected(nn.Linear(4, 4), torch.randn(2, 6, 4))
    for window in (0, -3):
        with pytest.raises(ValueError, match=f"window: got {window}; a query sees 1 key at least"):
            attncheck.assert_window_respected(Decoder(), token_ids(), window=window, output=0)
    with pytest.raises(TypeError, match=r"window: 2\.5 is float; expected an integer"):
        attncheck.assert_window_respected(Decoder(), token_ids(), window=2.5, output=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind: 'reader'"):
        attncheck.assert_deterministic(nn.Linear(4, 4), torch.randn(2, 6, 4), kind="reader")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="select: nothing is called hope"):
        check_model(nn.Linear(4, 4), torch.randn(2, 6, 4), select=["hope"])
