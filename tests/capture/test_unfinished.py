"""A call that ended half-way leaves nothing that looks whole."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import AttentionExtractor, CaptureError
from tests.capture.reference import Heads, stack

X = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))


def failing(m: Heads, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if getattr(m, "fails", False):
        raise ValueError("half way")
    return F.scaled_dot_product_attention(q, k, v)


def model(*, fails: bool = True) -> torch.nn.Module:
    made = stack(failing, 3)
    list(made.children())[1].fails = fails  # type: ignore[assignment]
    return made


def test_an_exception_leaves_no_maps() -> None:
    broken = model()
    extractor = AttentionExtractor(broken)
    with pytest.raises(ValueError, match="half way"), extractor:
        broken(X)
    with pytest.raises(CaptureError, match="its call did not finish"):
        extractor.maps  # noqa: B018
    assert extractor.attention_weights == []


def test_nor_those_of_an_earlier_call() -> None:
    broken = model(fails=False)
    extractor = AttentionExtractor(broken)
    assert len(extractor.get_attention(X)) == 3
    list(broken.children())[1].fails = True  # type: ignore[assignment]
    with pytest.raises(ValueError, match="half way"):
        extractor.get_attention(X)
    with pytest.raises(CaptureError, match="its call did not finish"):
        extractor.maps  # noqa: B018


def test_an_exception_that_is_caught_inside_is_noticed() -> None:
    broken = model()
    unfinished = pytest.raises(CaptureError, match="its call did not finish")
    with unfinished, AttentionExtractor(broken), suppress(ValueError):
        broken(X)


def test_so_is_one_between_hooks() -> None:
    broken = model()
    extractor = AttentionExtractor(broken)
    extractor.register_hooks()
    with suppress(ValueError):
        broken(X)
    with pytest.raises(CaptureError, match="its call did not finish"):
        extractor.maps  # noqa: B018
    extractor.clear_hooks()


def test_and_one_of_the_forward_alone() -> None:
    broken = model()
    extractor = AttentionExtractor(broken)
    with suppress(ValueError), extractor:
        broken.forward(X)
    with pytest.raises(CaptureError, match="its call did not finish"):
        extractor.maps  # noqa: B018


def test_the_layers_before_it_are_had_on_request() -> None:
    broken = model()
    extractor = AttentionExtractor(broken, strict=False)
    with suppress(ValueError), extractor:
        broken(X)
    with pytest.warns(UserWarning, match="its call did not finish"):
        assert len(extractor.maps) == 1


def test_an_error_of_the_users_own_code_spoils_nothing() -> None:
    whole = model(fails=False)
    extractor = AttentionExtractor(whole)
    with suppress(KeyError), extractor:
        whole(X)
        raise KeyError
    assert len(extractor.maps) == 3
