"""torch's own attention modules, attention written out, and `flex_attention`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.devices.support import (
    DTYPES,
    HALF,
    HEADS,
    WIDTH,
    Layer,
    assert_rebuilt,
    assert_same_maps,
    doubled,
    exact_weights,
    inputs,
    layers,
    name_of,
    on,
)

N = 24
PAD = torch.arange(N) >= torch.tensor([[N], [N - 6]])
FUTURE = torch.ones(N, N, dtype=torch.bool).triu(1)


class Multihead(nn.Module):
    """`nn.MultiheadAttention`, called one way."""

    def __init__(self, options: dict[str, Any], **made: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **made})
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        options = on(x.device, self.options)
        return self.attention(x, x, x, **options)[0]  # type: ignore[no-any-return]


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, dropout=0.3)
    return nn.TransformerEncoder(layer, 2, **options)


def multihead(name: str) -> nn.Module:
    torch.manual_seed(4)
    made: dict[str, Any] = {
        "weights": lambda: Multihead({"need_weights": True}),
        "no weights": lambda: Multihead({"need_weights": False}),
        "padding": lambda: Multihead({"need_weights": False, "key_padding_mask": PAD}),
        "causal": lambda: Multihead(
            {"need_weights": False, "attn_mask": FUTURE, "is_causal": True}
        ),
        "sequence first": lambda: Multihead({"need_weights": False}, batch_first=False),
        "bias and zero": lambda: Multihead(
            {"need_weights": True}, add_bias_kv=True, add_zero_attn=True
        ),
    }
    return made[name]()  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize(
    "name", ["weights", "no weights", "padding", "causal", "sequence first", "bias and zero"]
)
def test_multihead_attention(name: str, dtype: torch.dtype, attention_device: torch.device) -> None:
    model = multihead(name).eval()
    x = inputs(attention_device, N, dtype)
    expected = AttentionExtractor(doubled(model.to(dtype))).get_attention(x.cpu().double())
    found = AttentionExtractor(model.to(attention_device)).get_attention(x)
    assert_same_maps(found, expected, dtype)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_encoder_in_its_fast_path(
    padded: bool, dtype: torch.dtype, attention_device: torch.device
) -> None:
    torch.manual_seed(4)
    model = encoder(enable_nested_tensor=True).eval().to(dtype)
    x = inputs(attention_device, N, dtype)
    mask = {"src_key_padding_mask": PAD} if padded else {}
    expected = AttentionExtractor(doubled(model)).get_attention(x.cpu().double(), **mask)
    model = model.to(attention_device)
    with torch.no_grad():
        before = model(x, **on(x.device, mask))
        with AttentionExtractor(model) as extractor:
            during = model(x, **on(x.device, mask))
    assert_same_maps(extractor.maps, expected, dtype)
    kept = ~PAD.to(x.device) if padded else torch.ones_like(PAD, device=x.device)
    torch.testing.assert_close(
        during[kept], before[kept], atol=0.02 if dtype in HALF else 1e-5, rtol=0.02
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_encoder_in_training_draws_the_same_dropout(attention_device: torch.device) -> None:
    torch.manual_seed(4)
    model = encoder().train().to(attention_device)
    x = inputs(attention_device, N)
    torch.manual_seed(7)
    before, drawn = model(x), torch.rand(3, device=x.device)
    torch.manual_seed(7)
    with AttentionExtractor(model) as extractor:
        during = model(x)
    assert torch.equal(torch.rand(3, device=x.device), drawn)
    assert torch.equal(during, before)
    first = AttentionExtractor(doubled(model).eval()).get_attention(x.cpu().double())
    assert extractor.maps.names == first.names
    torch.testing.assert_close(extractor.maps[0].double(), first[0], atol=1e-5, rtol=0)


def test_decoder_has_self_and_cross_attention(attention_device: torch.device) -> None:
    torch.manual_seed(4)
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 64, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    x, memory = inputs(attention_device, N), inputs(attention_device, 31)
    options = {"tgt_mask": FUTURE, "tgt_is_causal": True}
    expected = AttentionExtractor(doubled(model)).get_attention(
        x.cpu().double(), memory.cpu().double(), **options
    )
    found = AttentionExtractor(model.to(attention_device)).get_attention(
        x, memory, **on(x.device, options)
    )
    assert [layer.kind for layer in found.layers] == ["self", "cross"] * 2
    assert_same_maps(found, expected)


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    hidden = torch.ones(query.shape[-2], key.shape[-2], device=query.device).triu(1).bool()
    scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    return F.dropout(scores.softmax(-1), 0.2, training=False) @ value


def by_einsum(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", query, key) / query.shape[-1] ** 0.5
    scores = scores + torch.full_like(scores, torch.finfo(scores.dtype).min).triu(1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.einsum("bhij,bhjd->bhid", weights, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("attend", [by_hand, by_einsum])
def test_attention_written_out(
    attend: Any, dtype: torch.dtype, attention_device: torch.device
) -> None:
    model = layers(attend, attention_device, dtype)
    x = inputs(attention_device, N, dtype)
    with torch.no_grad():
        before = model(x)
        with AttentionExtractor(model) as extractor:
            during = model(x)
    assert torch.equal(during, before)
    assert_same_maps(
        extractor.maps, AttentionExtractor(doubled(model)).get_attention(x.cpu().double()), dtype
    )
    assert all(layer.causal for layer in extractor.maps.layers)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_by_name(attention_device: torch.device) -> None:
    parts = [inputs(attention_device, n)[0] for n in (5, 9)]
    ragged = torch.nested.nested_tensor(parts, layout=torch.jagged)

    class Ragged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads)

    with pytest.raises(CaptureError, match="nested tensors"):
        AttentionExtractor(Ragged()).get_attention(ragged)


def seen_window(b: Any, h: Any, i: Any, j: Any) -> Any:
    return (j <= i) & (j > i - 9)


def distance(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score - 0.1 * (h + 1) * (i - j)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    ("compiled", "n"),
    [(False, N), pytest.param(True, 256, marks=pytest.mark.gpu)],
    ids=["plain", "compiled"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_flex_attention_with_a_block_mask_and_a_score_function(
    compiled: bool, n: int, dtype: torch.dtype, attention_device: torch.device
) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    mask = flex.create_block_mask(seen_window, None, None, n, n, device=attention_device.type)
    function = torch.compile(flex.flex_attention) if compiled else flex.flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return function(query, key, value, score_mod=distance, block_mask=mask)  # type: ignore[no-any-return]

    torch.manual_seed(2)
    model = Layer(attend).to(attention_device, dtype).eval()
    x = inputs(attention_device, n, dtype)
    with torch.no_grad():
        before = model(x)
        with AttentionExtractor(model) as extractor:
            during = model(x)
    torch.testing.assert_close(during, before, atol=2e-2 if dtype in HALF else 1e-5, rtol=2e-2)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    slope = 0.1 * (torch.arange(HEADS)[:, None, None] + 1)
    expected = exact_weights(
        *model.last, visible=seen_window(0, 0, i, j), bias=(-slope * (i - j))[None]
    )
    (layer,) = extractor.maps.layers
    assert (layer.backend, layer.causal, layer.status) == ("flex_attention", True, "exact")
    assert_rebuilt(layer.weights, expected)
