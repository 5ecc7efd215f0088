"""What a monitor measures of one layer, from the call as it ran and the weights it made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attncheck.attention import LayerAttention, head_name
from attncheck.attention.tokens import as_tokens
from attncheck.capture.call import AttentionCall
from attncheck.capture.rebuild import of_query_heads
from attncheck.capture.select import choose
from attncheck.evaluate import profile_layer
from attncheck.metrics import METRICS
from attncheck.monitor.sample import EXTRA, MASSES, HeadSample
from attncheck.patterns import classify_evidence
from attncheck.profile import LayerProfile

__all__ = ["Measurement"]


@dataclass
class Measurement:
    """The layers of one sampled forward pass, measured as they come."""

    layers: list[LayerProfile] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)
    twins: list[str] = field(default_factory=list)

    def add(
        self, layer: LayerAttention, call: AttentionCall | None, token_ids: Tensor | None
    ) -> None:
        """Measure a layer.

        Args:
            layer: Its weights, ``(batch, head, query, key)``.
            call: Query, key and output of the same sequences.
            token_ids: That it reads, ``(batch, token)``, for the patterns of tokens; None: without.
        """
        valid = layer.valid_rows()
        output = None if call is None else _head_outputs(call, layer)
        bad = _bad_rows(layer.weights, output, valid)
        logits = None if call is None else _max_logit(call, layer, valid)
        missing = [math.nan] * layer.n_heads
        distance, twins = _twins(layer, valid)
        rows = {
            "max_logit": missing if logits is None else logits.tolist(),
            "output_rms": missing if output is None else _rms(output, valid).tolist(),
            "bad_rows": bad.tolist(),
            "twin_distance": distance,
        }
        for name, row in rows.items():
            self.extra.setdefault(name, []).extend(row)
        self.twins += twins
        self.layers.append(profile_layer(layer, _tokens(layer, token_ids)))

    def sample(self, step: int, time: float) -> HeadSample:
        """Put the layers together."""
        labels = classify_evidence(
            [layer.evidence for layer in self.layers],
            [layer.heads for layer in self.layers],
            [layer.index for layer in self.layers],
        )
        known = {name for layer in self.layers for name in layer.evidence.names}
        measures = {name: self._row(name) for name in (*METRICS, *MASSES) if _is(name, known)}
        self.extra["label_mass"] = [
            next((s.mass for s in one.ranked if s.pattern == one.label), math.nan) for one in labels
        ]
        return HeadSample(
            step=step,
            time=time,
            heads=tuple(label.name for label in labels),
            measures=measures | {name: tuple(self.extra[name]) for name in EXTRA},
            labels=tuple(label.label for label in labels),
            twins=tuple(self.twins),
        )

    def _row(self, name: str) -> tuple[float, ...]:
        values: list[float] = []
        for layer in self.layers:
            try:
                values += layer.value(name).tolist()
            except KeyError:  # a pattern that this layer cannot have
                values += [math.nan] * layer.n_heads
        return tuple(values)


def _tokens(layer: LayerAttention, token_ids: Tensor | None) -> object:
    if token_ids is None or layer.kind == "cross":
        return None
    try:
        return as_tokens(token_ids[: layer.batch].tolist(), [layer])
    except ValueError:
        return None


def _is(name: str, known: set[str]) -> bool:
    return name in METRICS or name in known


def _head_outputs(call: AttentionCall, layer: LayerAttention) -> Tensor | None:
    """What each head returned, ``(batch, head, query, size)``; None where heads are mixed."""
    output = call.output
    if call.redone is not None or output.ndim != 4 or output.shape[:3] != call.shape[:3]:
        return None
    return output.detach()[:, list(layer.heads)].float()


def _bad_rows(weights: Tensor, output: Tensor | None, valid: Tensor) -> Tensor:
    """Share of valid rows with anything that is no finite number, ``(head,)``."""
    bad = ~torch.isfinite(weights.sum(-1))
    if output is not None:
        bad = bad | ~torch.isfinite(output.sum(-1))
    rows = valid.sum((0, 2)).clamp(min=1)
    return (bad & valid).sum((0, 2)) / rows


def _rms(output: Tensor, valid: Tensor) -> Tensor:
    squares = output.square().mean(-1).masked_fill(~valid, 0)
    return (squares.sum((0, 2)) / valid.sum((0, 2)).clamp(min=1)).sqrt()


def _max_logit(call: AttentionCall, layer: LayerAttention, valid: Tensor) -> Tensor | None:
    """Largest scaled score of query and key that may see each other, ``(head,)``."""
    if call.query is None or call.key is None:
        return None
    heads = choose(layer.heads, call.query.shape[1], call.query.device, "heads")
    query = heads.of(call.query.detach(), 1).float()
    key = of_query_heads(call.key.detach(), heads, call.query.shape[1]).float()
    scale = 1 / math.sqrt(query.shape[-1]) if call.scale is None else call.scale
    scores = torch.matmul(query, key.transpose(-1, -2)).mul_(scale)
    if call.bias is not None:
        scores = scores + heads.of(call.bias.detach(), 1).float()
    scores = scores.masked_fill_(~(layer.visible() & valid[..., None]), -torch.inf)
    return scores.amax((0, 2, 3))


def _twins(layer: LayerAttention, valid: Tensor) -> tuple[list[float], list[str]]:
    """For each head the most similar one of the layer, and how far it is.

    The distance is ``|A - B| / sqrt(|A - U| |B - U|)`` in Frobenius norms, U even attention over
    what is visible: it does not call heads alike because both are still close to even.
    """
    heads = layer.n_heads
    if heads < 2:
        return [math.nan] * heads, [""] * heads
    visible = layer.visible()
    seen = visible.sum(-1, keepdim=True).clamp(min=1)
    apart = (layer.weights.float() - visible / seen).masked_fill_(~(visible & valid[..., None]), 0)
    flat = apart.transpose(0, 1).flatten(1)
    gram = (flat @ flat.T).double()
    size = gram.diagonal()
    between = (size[:, None] + size - 2 * gram).clamp(min=0).sqrt()
    scale = (size[:, None] * size).pow(0.25)
    # Rounding of float32 leaves an even head 1e-7 from even, in every row.
    even = size <= 1e-12 * max(1, int(valid.sum()) // heads)
    ratio = (between / scale).nan_to_num(nan=math.inf)
    ratio[even] = math.inf
    ratio[:, even] = math.inf
    ratio.fill_diagonal_(math.inf)
    nearest, which = ratio.min(-1)
    distance = [value if math.isfinite(value) else math.nan for value in nearest.tolist()]
    names = [head_name(layer.index, head) for head in layer.heads]
    return distance, [
        names[other] if math.isfinite(value) else ""
        for value, other in zip(distance, which.tolist(), strict=True)
    ]
