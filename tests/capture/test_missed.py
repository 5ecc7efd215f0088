"""A softmax of query and key that multiplied values and gave no map raises, whatever its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, close, reference_weights

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(5))


def plain(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1) @ v


def best_keys(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Other keys for every query: a map of them would name ranks keys."""
    best, chosen = (q @ k.mT / 2).topk(3)
    values = (
        v[:, :, None]
        .expand(-1, -1, 6, -1, -1)
        .gather(3, chosen[..., None].expand(*chosen.shape, 4))
    )
    return (best.softmax(-1)[..., None] * values).sum(3)


def largest_weights(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, chosen = (q @ k.mT / 2).softmax(-1).topk(2)
    values = (
        v[:, :, None]
        .expand(-1, -1, 6, -1, -1)
        .gather(3, chosen[..., None].expand(*chosen.shape, 4))
    )
    return (weights[..., None] * values).sum(3)


def some_keys(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(-1)[..., ::2] @ v[:, :, ::2]


@torch.jit.script
def scripted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.matmul(q, k.transpose(-1, -2)), -1) @ v


def by_script(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scripted(q, k, v)


def by_numpy(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raised = np.exp((q @ k.mT / 2).detach().numpy())
    return torch.from_numpy(raised / raised.sum(-1, keepdims=True)) @ v


def by_kernel(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    output: Tensor = torch.ops.aten._scaled_dot_product_attention_math(q, k, v)[0]
    return output


class Nameless(Heads):
    """Attention by what it computes alone."""


@pytest.mark.parametrize("kind", [Nameless, Heads])
@pytest.mark.parametrize(
    "attend", [best_keys, largest_weights, some_keys, by_script, by_numpy, by_kernel]
)
def test_a_missed_attention_beside_a_captured_one_is_an_error(
    attend: Callable[..., Tensor], kind: type[Heads]
) -> None:
    model = nn.Sequential(Heads(plain), kind(attend))
    with pytest.raises(CaptureError, match="not all of it") as error:
        AttentionExtractor(model).get_attention(X)
    assert "  1: " in str(error.value)
    with pytest.warns(UserWarning, match="1: "):
        maps = AttentionExtractor(model, strict=False).get_attention(X)
    assert maps.names == ("0",)


def test_scripted_functions_are_called_as_before_afterwards() -> None:
    call = torch.jit.ScriptFunction.__call__
    with pytest.raises(CaptureError):
        AttentionExtractor(Heads(by_script)).get_attention(X)
    assert torch.jit.ScriptFunction.__call__ is call


def test_a_cache_that_is_filled_in_forward_depends_on_the_input() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = torch.zeros(2, 4, 8, 4), torch.zeros(2, 4, 8, 4)
        keys[:, :, :6] = k
        values.narrow(2, 0, 6).copy_(v)
        return (q @ keys[:, :, :6].mT / 2).softmax(-1) @ values[:, :, :6]

    module = Heads(attend)
    maps = AttentionExtractor(module).get_attention(X)
    assert close(maps[0], reference_weights(*module.last))


def test_learned_queries_attend() -> None:
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent = nn.Parameter(torch.randn(3, 16))

        def forward(self, x: Tensor) -> Tensor:
            query = (self.latent * 2).expand(2, -1, -1)
            return (query @ x.mT).softmax(-1) @ x

    assert AttentionExtractor(Latent()).get_attention(X)[0].shape == (2, 1, 3, 6)


def test_learned_tokens_attend_to_each_other_beside_positions_of_the_input() -> None:
    class Tokens(nn.Module):
        """A decoder's first layer: values come from learned tokens alone."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.randn(6, 16))
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.tokens[None].repeat(2, 1, 1)
            query, key = self.query(tokens + x), self.key(tokens + x)
            weights = (query @ key.mT).softmax(-1)
            return weights @ self.value(tokens)

    assert AttentionExtractor(Tokens()).get_attention(X)[0].shape == (2, 1, 6, 6)


class Holder:
    """Holds a tensor and lets torch's functions see it."""

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Tensor],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> Holder:
        plain = [arg.held if isinstance(arg, Holder) else arg for arg in args]
        return Holder(function(*plain, **(kwargs or {})))


def test_a_class_that_holds_tensors_is_seen_through() -> None:
    def attend(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.div(torch.matmul(Holder(q), Holder(k.mT)), 2)
        return torch.matmul(torch.softmax(scores, -1), Holder(v)).held

    module = Heads(attend)
    maps = AttentionExtractor(module).get_attention(X)
    assert close(maps[0], reference_weights(*module.last))
