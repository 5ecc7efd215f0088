"""Pictures of tensors that lie on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attncheck import (
    AttentionExtractor,
    create_synthetic_attention,
    plot_attention_heatmap,
    plot_head_map,
    plot_heads,
    plot_statistics,
)
from attncheck.models import load_tiny_model, repeated_tokens
from tests.devices.support import name_of


def heads(device: torch.device, dtype: torch.dtype, n: int = 12) -> torch.Tensor:
    return torch.cat(
        [
            create_synthetic_attention(n, name, seed=0, batch=1, dtype=dtype, device=device)
            for name in ("diagonal", "uniform", "first_token")
        ],
        1,
    )


@pytest.mark.parametrize(
    ("n", "dtype"), [(12, torch.float32), (12, torch.bfloat16), (200, torch.float16)], ids=name_of
)
def test_a_heatmap_is_what_was_given(
    n: int, dtype: torch.dtype, attention_device: torch.device
) -> None:
    given = heads(attention_device, dtype, n)[0, 1].requires_grad_()
    drawn = plot_attention_heatmap(given, list(range(n)), show_values=n < 50)
    plain = plot_attention_heatmap(given.detach().cpu())
    np.testing.assert_array_equal(drawn.images[0].get_array(), plain.images[0].get_array())


@pytest.mark.parametrize("draw", [plot_heads, plot_head_map, plot_statistics])
def test_pictures_of_all_heads(
    draw: object, tmp_path: Path, attention_device: torch.device
) -> None:
    assert callable(draw)
    layers = [heads(attention_device, torch.bfloat16) for _ in range(2)]
    path = tmp_path / "picture.png"
    draw(layers, save_path=path)
    plain = tmp_path / "plain.png"
    draw([layer.cpu() for layer in layers], save_path=plain)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() == plain.read_bytes()


def test_pictures_of_captured_maps(tmp_path: Path, attention_device: torch.device) -> None:
    model, ids = load_tiny_model().to(attention_device), repeated_tokens(8).to(attention_device)
    maps = AttentionExtractor(model, device=None).get_attention(ids)
    figure = plot_heads(maps, save_path=tmp_path / "heads.png")
    assert "L0H1 previous token" in [ax.get_title() for ax in figure.axes]
