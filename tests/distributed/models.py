"""A decoder with grouped heads that runs whole or with its heads divided among ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

VOCABULARY, WIDTH, HEADS, KV_HEADS, SIZE = 11, 32, 8, 4, 4


class Attention(nn.Module):
    """Counts its heads by what the projections return, as tensor-parallel models do."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * SIZE)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * SIZE)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * SIZE)
        self.o_proj = nn.Linear(HEADS * SIZE, WIDTH)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = hidden.shape
        q, k, v = (
            projection(hidden).view(batch, length, -1, SIZE).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Causal, with padding masks; scores are made large so that heads differ."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Attention() for _ in range(layers))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        n = input_ids.shape[1]
        seen = None
        if attention_mask is not None:
            seen = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            seen = seen & attention_mask.bool()[:, None, None, :]
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden, seen)
        return hidden  # type: ignore[no-any-return]


def batches() -> list[dict[str, Tensor]]:
    """Seven padded batches of several sizes and lengths."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number, length in enumerate((12, 16, 9, 20, 12, 14, 10)):
        ids = torch.randint(0, VOCABULARY, (1 + number % 3, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, length - number :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


class WholeAttention(Attention):
    """Sees the whole layer in every tensor, as code on `DTensor` does."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            projection(hidden).unflatten(-1, (-1, SIZE)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        n = hidden.shape[1]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        hidden_scores = torch.zeros(n, n).masked_fill(~seen, -torch.inf)
        if hasattr(q, "device_mesh"):
            from torch.distributed.tensor import distribute_tensor

            seen, hidden_scores = (
                distribute_tensor(m, q.device_mesh) for m in (seen, hidden_scores)
            )
        if self.way == "sdpa":
            with sdpa_kernel(SDPBackend.MATH):  # the only one for DTensor on a CPU
                mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        else:
            k, v = (held.repeat_interleave(HEADS // KV_HEADS, 1) for held in (k, v))
            scores = q @ k.transpose(-1, -2) / SIZE**0.5
            mixed = torch.softmax(scores + hidden_scores, -1) @ v
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def on_whole_tensors(way: str) -> Decoder:
    """The decoder with layers for `DTensor`: ``"sdpa"``, or ``"softmax"`` written out."""
    model = Decoder()
    for number, layer in enumerate(model.layers):
        whole = WholeAttention(way)
        whole.load_state_dict(layer.state_dict())
        model.layers[number] = whole
    return model


def parallelized(model: Decoder, mesh: Any, *, local: bool = True) -> Decoder:
    """Divide the heads of every layer over a mesh; attention gets plain tensors, or `DTensor`."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    divided = ColwiseParallel(use_local_output=local)
    plan = {f"layers.*.{name}_proj": divided for name in ("q", "k", "v")}
    return parallelize_module(model, mesh, {**plan, "layers.*.o_proj": RowwiseParallel()})  # type: ignore[return-value]
