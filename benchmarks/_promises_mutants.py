"""Bugs planted in real small models of transformers, each with the promise that should break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck.model_checks.decoding_cache import held_cache
from benchmarks._promises_planting import MUTANTS, Wrapped, allow, plant, unmask, wrap

__all__ = ["MUTANTS"]

# What a decoder must not see.


@plant("causal mask lost in one layer", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    unmask(model.layers[1].self_attn)


@plant("causal mask lost with output_attentions=True", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    for layer in model.layers:
        unmask(layer.self_attn, lambda **kwargs: bool(kwargs.get("output_attentions")))


@plant("mask shifted by one: each sees the next token", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    allow(model.layers[0].self_attn, lambda query, key: key <= query + 1)


@plant("softmax over queries", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    model.set_attn_implementation("eager")

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        true, F.softmax = F.softmax, lambda x, **rest: true(x, **{**rest, "dim": -2})
        try:
            return original(*args, **kwargs)
        finally:
            F.softmax = true

    wrap(model.layers[1].self_attn, around)


@plant("normalised by the mean of the sequence", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    wrap(model.layers[0].mlp, lambda f, x: f(x - x.mean(1, keepdim=True)))


@plant("a convolution that looks one token ahead", "Llama", "no-future-leakage")
def _(model: Any) -> None:
    wrap(model.layers[1].mlp, lambda f, x: f(x + 0.1 * x.roll(-1, 1)))


@plant("causal mask of the decoder lost beside an encoder", "T5", "no-future-leakage")
def _(model: Any) -> None:
    for block in model.decoder.block:
        attention = block.layer[0].SelfAttention
        attention.is_causal = False
        wrap(attention, lambda f, *args, **kwargs: f(*args, **{**kwargs, "mask": None}))


# Padding.


@plant("padding mask dropped in one layer", "Bert", "padding-invariant")
def _(model: Any) -> None:
    unmask(model.encoder.layer[1].attention.self)


@plant("padding mask dropped everywhere", "Llama", "padding-invariant")
def _(model: Any) -> None:
    wrap(model, lambda f, *args, **kwargs: f(*args, **{**kwargs, "attention_mask": None}))


@plant("position ids ignored under left padding", "GPT2", "padding-invariant")
def _(model: Any) -> None:
    def around(original: Wrapped, places: Tensor) -> Any:
        first = 0 if places.shape[1] > 1 else int(places.max())
        return original(torch.arange(places.shape[1])[None].expand_as(places) + first)

    wrap(model.wpe, around)


@plant("mask of cross-attention ignored", "T5", "padding-invariant")
def _(model: Any) -> None:
    for block in model.decoder.block:
        without = {"mask": None, "position_bias": None}
        wrap(
            block.layer[1].EncDecAttention,
            lambda f, *args, without=without, **kwargs: f(*args, **{**kwargs, **without}),
        )


@plant("padding counted in a mean over the sequence", "Bert", "padding-invariant")
def _(model: Any) -> None:
    wrap(model.encoder.layer[0].output.dense, lambda f, x: f(x + x.mean(1, keepdim=True)))


# The batch.


@plant("statistics over the batch in a norm", "Llama", "batch-invariant")
def _(model: Any) -> None:
    wrap(model.layers[1].input_layernorm, lambda f, x: f(x - 0.1 * x.mean(0, keepdim=True)))


@plant("statistics over the batch between patches", "ViT", "batch-invariant")
def _(model: Any) -> None:
    wrap(model.layernorm, lambda f, x: f(x / x.std(0, keepdim=True).clamp(min=1e-3)))


@plant("a reshape that mixes sequences in one head", "Bert", "batch-invariant")
def _(model: Any) -> None:
    def around(original: Wrapped, x: Tensor, *args: Any) -> Any:
        x = x.clone()
        x[..., :8] = x[..., :8].roll(1, 0)
        return original(x, *args)

    wrap(model.encoder.layer[1].attention.output, around)


@plant("quantised by the largest value of the batch", "Llama", "batch-invariant")
def _(model: Any) -> None:
    def around(original: Wrapped, x: Tensor) -> Any:
        scale = x.abs().amax() / 15
        return original((x / scale).round() * scale)

    wrap(model.layers[0].mlp, around)


# The cache.


def seen_length(cache: Any) -> int:
    """Positions in a cache, 0 where there is none."""
    return 0 if cache is None else int(cache.get_seq_length())


def in_steps(model: Any, change: Callable[[dict[str, Any], int], None]) -> None:
    """Change the arguments of calls that continue from a cache."""

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        past = seen_length(held_cache(kwargs))
        if past:
            change(kwargs, past)
        return original(*args, **kwargs)

    wrap(model, around)


@plant("position off by one while decoding", "Llama", "cache-consistent")
def _(model: Any) -> None:
    def change(kwargs: dict[str, Any], past: int) -> None:
        n = kwargs["input_ids"].shape[1]
        kwargs["position_ids"] = (torch.arange(n) + past - 1)[None]

    in_steps(model, change)


@plant("last entry of the cache lost", "Llama", "cache-consistent")
def _(model: Any) -> None:
    in_steps(model, lambda kwargs, _: held_cache(kwargs).crop(-1))


@plant("keys of the cache in another order than its values", "GPT2", "cache-consistent")
def _(model: Any) -> None:
    def change(kwargs: dict[str, Any], _: int) -> None:
        for layer in held_cache(kwargs).layers:
            layer.keys = layer.keys.roll(1, 2)

    in_steps(model, change)


@plant("padding forgotten while decoding", "Llama", "cache-consistent")
def _(model: Any) -> None:
    in_steps(model, lambda kwargs, _: kwargs.pop("attention_mask", None))


@plant("a chunk sees its own future", "Llama", "cache-consistent")
def _(model: Any) -> None:
    for layer in model.layers:
        unmask(layer.self_attn, lambda **kwargs: seen_length(held_cache(kwargs)) > 0)


@plant("sequences share the first one's cache", "Llama", "cache-consistent")
def _(model: Any) -> None:
    def change(kwargs: dict[str, Any], _: int) -> None:
        for layer in held_cache(kwargs).layers:
            layer.values = layer.values[:1].expand_as(layer.values).clone()

    in_steps(model, change)


@plant("cross-attention's cache scaled twice", "T5", "cache-consistent")
def _(model: Any) -> None:
    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        cache = held_cache(kwargs)
        if seen_length(cache) and cache is not None:
            for layer in cache.cross_attention_cache.layers:
                layer.keys = layer.keys * 1.1
        return original(*args, **kwargs)

    wrap(model, around)


# Backends.


@plant("mask dropped under sdpa in one layer", "Llama", "backends-agree")
def _(model: Any) -> None:
    attention = model.layers[1].self_attn
    unmask(attention, lambda **_: attention.config._attn_implementation == "sdpa")


@plant("padding dropped under sdpa only", "Bert", "backends-agree")
def _(model: Any) -> None:
    attention = model.encoder.layer[0].attention.self
    unmask(attention, lambda **_: attention.config._attn_implementation == "sdpa")


@plant("another scale under eager", "Llama", "backends-agree")
def _(model: Any) -> None:
    attention = model.layers[0].self_attn

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        true = attention.scaling
        attention.scaling = true * (
            1.1 if attention.config._attn_implementation == "eager" else 1.0
        )
        try:
            return original(*args, **kwargs)
        finally:
            attention.scaling = true

    wrap(attention, around)


@plant("output scaled when attention is asked for", "GPT2", "backends-agree")
def _(model: Any) -> None:
    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        scale = 1.01 if kwargs.get("output_attentions") else 1.0
        found = original(*args, **kwargs)
        found.last_hidden_state = found.last_hidden_state * scale
        return found

    wrap(model, around)


# Windows.


def window_in_masks(model: Any, window: int) -> None:
    """Build masks for another window than the configuration says."""

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        true, model.config.sliding_window = model.config.sliding_window, window
        try:
            return original(*args, **kwargs)
        finally:
            model.config.sliding_window = true

    wrap(model, around)


@plant("window + 1", "Mistral", "window-respected")
def _(model: Any) -> None:
    window_in_masks(model, 5)


@plant("window - 1", "Mistral", "window-respected")
def _(model: Any) -> None:
    window_in_masks(model, 3)


@plant("window lost in one layer", "Mistral", "window-respected")
def _(model: Any) -> None:
    allow(model.layers[1].self_attn, lambda query, key: key <= query)


# Packed documents.


@plant("packed documents see each other", "Llama", "segments-isolated")
def _(model: Any) -> None:
    for layer in model.layers:
        allow(layer.self_attn, lambda query, key: key <= query)


@plant("packed documents see each other in one layer", "Llama", "segments-isolated")
def _(model: Any) -> None:
    allow(model.layers[1].self_attn, lambda query, key: key <= query)


@plant("positions go on in the next document", "GPT2", "segments-isolated")
def _(model: Any) -> None:
    def around(original: Wrapped, places: Tensor) -> Any:
        n = places.shape[1]
        restarts = n > 1 and bool((places.diff(dim=1) < 0).any())
        return original(torch.arange(n)[None].expand_as(places) if restarts else places)

    wrap(model.wpe, around)


# Chance, state, gradients, order.


@plant("dropout left on in one layer", "Llama", "dropout-off-in-eval")
def _(model: Any) -> None:
    wrap(model.layers[1].mlp, lambda f, x: F.dropout(f(x), 0.1))


@plant("attention dropout used in eval mode, at rate 0 here", "Llama", "dropout-off-in-eval")
def _(model: Any) -> None:
    attention = model.layers[0].self_attn

    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        attention.training = True
        try:
            return original(*args, **kwargs)
        finally:
            attention.training = False

    wrap(attention, around)


@plant("a buffer that every call moves", "Llama", "deterministic")
def _(model: Any) -> None:
    def around(original: Wrapped, *args: Any, **kwargs: Any) -> Any:
        model.rotary_emb.inv_freq.mul_(0.99)
        return original(*args, **kwargs)

    wrap(model, around)


@plant("the longest length so far changes the positions", "Bert", "deterministic")
def _(model: Any) -> None:
    seen: list[int] = []

    def around(original: Wrapped, ids: Any = None, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].shape[1] if ids is None else ids.shape[1])
        found = original(ids, **kwargs) if ids is not None else original(**kwargs)
        return found * (1 + 0.01 * (min(seen) < max(seen)))

    wrap(model.embeddings, around)


@plant("keys detached in one layer", "Llama", "gradients-flow")
def _(model: Any) -> None:
    wrap(model.layers[1].self_attn.k_proj, lambda f, x: f(x).detach())


@plant("values under no_grad", "Bert", "gradients-flow")
def _(model: Any) -> None:
    def around(original: Wrapped, x: Tensor) -> Any:
        with torch.no_grad():
            return original(x)

    wrap(model.encoder.layer[0].attention.self.value, around)


@plant("one head's output set to 0", "Llama", "gradients-flow")
def _(model: Any) -> None:
    def around(original: Wrapped, x: Tensor) -> Any:
        keep = torch.ones(x.shape[-1], dtype=x.dtype)
        keep[:8] = 0
        return original(x * keep)

    wrap(model.layers[0].self_attn.o_proj, around)


@plant("positions never added", "Bert", "position-sensitive")
def _(model: Any) -> None:
    wrap(model.embeddings.position_embeddings, lambda f, x: 0 * f(x))
