"""`AttentionMaps`: the attention of a model, one `LayerAttention` per captured call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, overload

import torch
from torch import Tensor

from attncheck.attention.arguments import whole_number
from attncheck.attention.held import SinkMass, Weights, held_by, held_fields, state_of
from attncheck.attention.query_key import QueryKey
from attncheck.tolerances import TOLERANCES, tolerance_for

__all__ = ["AttentionMaps", "LayerAttention", "Tokens", "head_name"]

Tokens = tuple[tuple[str | int, ...], ...]
"""Tokens of each batch element, one per key position: strings or token ids."""


OF_LAYERS: Final = "LayerAttention; as_attention takes tensors, arrays and model outputs"

SHOWN: Final = 12
"""Layers that a message lists."""


def head_name(layer: int, head: int) -> str:
    """Name a head the way messages do.

    Example:
        >>> head_name(5, 1)
        'L5H1'
    """
    return f"L{layer}H{head}"


@dataclass(frozen=True, eq=False, repr=False)
class LayerAttention:
    """Attention weights of one layer, with what is needed to read them.

    Attributes:
        weights: ``(batch, head, query, key)``, floating, after softmax, before dropout. May be
            given as a `QueryKey`, from which they are made when they are first read.
        name: Module path (``"encoder.layer.0.attention"``) or ``"layer 0"``.
        index: Number of the layer, the ``L`` of ``L5H1``.
        kind: ``"self"``, ``"cross"``, or ``"unknown"`` for bare tensors.
        backend: What computed it: ``"sdpa"``, ``"eager"``, ... or ``"given"`` for bare tensors.
        n_key_value_heads: Heads of key and value (fewer than query heads under GQA and MQA).
        mask: Bool, True where the key is visible, broadcastable to ``weights``; None: no mask.
        causal: Query ``i`` sees no key behind position ``i + n_key - n_query``; made weights too.
        heads: The model's numbers of the heads held here.
        sink_mass: ``(batch, head, query)``: mass on a learned sink that is not a key
            (``row sum + sink mass = 1``); None where the layer has none.
        call: How often this module had been called before, in the same capture.
        status: ``"exact"``, or why the capture is not to be trusted.
        queries: The call's numbers of the queries held here; empty: all of them.
        n_query_in_call: How many queries the call had, where `queries` names some of them.
        sighted: Bool, ``(batch or 1, head or 1, query)``: what `sighted_rows` returns, where the
            queries held do not tell; None: they do.
        note: What else is to be known, such as a compiled model that ran eagerly.
        model_dtype: What the model computed in (``"bfloat16"``), empty where not known; rebuilt
            weights are float32 at least, whatever that was.
        model_device: What it ran on (``"cuda:0"``), empty where not known.

    Example:
        >>> layer = LayerAttention(torch.eye(3).expand(2, 4, 3, 3), name="attn", causal=True)
        >>> layer
        LayerAttention('attn', (2, 4, 3, 3) float32, unknown, given, causal)
        >>> layer.batch, layer.n_heads, layer.n_query, layer.n_key
        (2, 4, 3, 3)
        >>> layer.visible()[0, 0].tolist()
        [[True, False, False], [True, True, False], [True, True, True]]
    """

    weights: Weights = Weights()  # noqa: RUF009 - a descriptor, shared by design
    name: str = "layer 0"
    index: int = 0
    kind: Literal["self", "cross", "unknown"] = "unknown"
    backend: str = "given"
    n_key_value_heads: int = 0
    mask: Tensor | None = None
    causal: bool = False
    heads: tuple[int, ...] = ()
    sink_mass: SinkMass = SinkMass()  # noqa: RUF009 - a descriptor, shared by design
    call: int = 0
    status: str = "exact"
    queries: tuple[int, ...] = ()
    n_query_in_call: int = 0
    sighted: Tensor | None = None
    note: str = ""
    model_dtype: str = ""
    model_device: str = ""

    def __post_init__(self) -> None:
        if not self.heads:
            object.__setattr__(self, "heads", tuple(range(self.n_heads)))
        if not self.n_key_value_heads:
            object.__setattr__(self, "n_key_value_heads", len(self.heads))
        record = self.query_key
        if self.causal and record is not None and record.looks_ahead:
            vars(self)["weights"] = replace(record, causal=True, rows=self.query_positions())

    def __getstate__(self) -> dict[str, Any]:
        return state_of(self)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [repr(self.name), f"{self.shape} {dtype}", self.kind, self.backend]
        if self.causal:
            parts.append("causal")
        if self.status != "exact":
            parts.append(self.status)
        return f"LayerAttention({', '.join(parts)})"

    @property
    def held(self) -> Tensor | QueryKey:
        """The weights, or what they are to be made from; makes none."""
        return held_by(self)

    def changed(self, **changes: Any) -> LayerAttention:
        """Return the layer with other fields, as `dataclasses.replace`, but make no weights."""
        return replace(self, **{**held_fields(self), **changes})

    @property
    def query_key(self) -> QueryKey | None:
        """What the weights are made from, where that is held; see `QueryKey`."""
        held = self.held
        return held if isinstance(held, QueryKey) else None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(batch, head, query, key)``."""
        batch, head, query, key = self.held.shape
        return batch, head, query, key

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        held = self.held
        return held.weights_dtype if isinstance(held, QueryKey) else held.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are, or will be made."""
        return self.held.device

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.shape[0]

    @property
    def n_heads(self) -> int:
        """Number of heads held."""
        return self.shape[1]

    @property
    def n_query(self) -> int:
        """Number of query positions held."""
        return self.shape[2]

    @property
    def n_key(self) -> int:
        """Number of key positions."""
        return self.shape[3]

    @property
    def dtype_name(self) -> str:
        """The coarser dtype of what the model computed in and what is held: bounds rounding."""
        held = str(self.dtype).removeprefix("torch.")
        names = [held, self.model_dtype] if self.model_dtype in TOLERANCES else [held]
        return max(names, key=lambda name: tolerance_for(name).row_sum)

    @property
    def _queries_of_call(self) -> int:
        return self.n_query_in_call if self.queries else self.n_query

    @property
    def positional(self) -> bool:
        """Whether query and key positions count the same tokens, so that offsets mean something."""
        return self.kind != "cross" and (self.causal or self._queries_of_call == self.n_key)

    def query_positions(self) -> Tensor:
        """Key position of each query held, ``(query,)``.

        With fewer queries than keys in the call, its queries are the last positions.
        """
        shift = self.n_key - self._queries_of_call
        if self.queries:
            return torch.tensor(self.queries, device=self.device) + shift
        return torch.arange(self.n_query, device=self.device) + shift

    def visible(self) -> Tensor:
        """Which keys each query may see: bool ``(batch or 1, head or 1, query, key)``."""
        shape = (1, 1, self.n_query, self.n_key)
        seen = torch.ones(shape, dtype=torch.bool, device=self.device)
        if self.causal:
            keys = torch.arange(self.n_key, device=self.device)
            seen = seen & (keys <= self.query_positions()[:, None])
        return seen if self.mask is None else seen & self.mask

    def laid_out(self) -> LayerAttention:
        """Return a layer whose queries stand one after the other, up to the call's last.

        Queries between and behind those held get rows of zeros that see no key.
        """
        first = min(self.queries, default=0)
        length = self._queries_of_call - first
        everything = tuple(range(first, self._queries_of_call))
        if not self.queries or self.queries == everything:
            return self
        places = torch.tensor(self.queries, device=self.device) - first

        def spread(rows: Tensor) -> Tensor:
            size = (*rows.shape[:2], length, *rows.shape[3:])
            return rows.new_zeros(size).index_copy_(2, places, rows)

        sink_mass, sighted = self.sink_mass, self.sighted
        return self.changed(
            weights=spread(self.weights),
            mask=spread(self.visible()),
            sink_mass=None if sink_mass is None else spread(sink_mass),
            sighted=None if sighted is None else spread(sighted),
            queries=everything,
        )

    def sighted_rows(self) -> Tensor:
        """Which query rows see a key that matters: bool ``(batch or 1, head or 1, query)``.

        Left out are rows that see no key, and rows of padding: in self-attention, a query whose
        own key nobody sees. Backends fill those as they like: zeros, NaN, uniform weights.
        """
        if self.sighted is not None:
            return self.sighted
        visible = self.visible()
        sighted = visible.any(-1)
        if self.positional and self.mask is not None:
            seen_by_anyone = visible.any(-2)
            own = self.query_positions().clamp(min=0)
            sighted = sighted & seen_by_anyone[..., own]
        return sighted

    def valid_rows(self, extremes: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Which query rows carry attention: bool ``(batch, head, query)``.

        Args:
            extremes: Highest and lowest weight of each row, where they are known.

        Left out are rows that see no key that matters, see `sighted_rows`, and rows whose weights
        are all exactly zero (a fully masked row, as ``scaled_dot_product_attention`` returns it).
        """
        # Extremes cost a tenth of comparing every weight with 0; NaN comes through them.
        highest, lowest = extremes or (self.weights.amax(-1), self.weights.amin(-1))
        valid = self.sighted_rows() & ((highest != 0) | (lowest != 0))
        return valid.expand(self.shape[:3])


class AttentionMaps(Sequence[Tensor]):
    """The attention of a model: a sequence of ``(batch, head, query, key)`` tensors.

    Args:
        layers: One `LayerAttention` per captured call, in execution order.
        tokens: Tokens of each batch element, one per key position.

    Raises:
        TypeError: ``layers`` holds something else.

    Example:
        >>> maps = AttentionMaps([LayerAttention(torch.eye(3)[None, None], name="attn")])
        >>> maps["attn"].shape == maps[0].shape == (1, 1, 3, 3)
        True
        >>> maps
        AttentionMaps(1 layer, 1 head, float32)
    """

    def __init__(self, layers: Iterable[LayerAttention], *, tokens: Tokens | None = None) -> None:
        self.layers: tuple[LayerAttention, ...] = tuple(layers)
        for layer in self.layers:
            if not isinstance(layer, LayerAttention):
                raise TypeError(f"layers: one is {type(layer).__name__}; expected {OF_LAYERS}")
        self.tokens = tokens

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each layer; a module called twice appears twice."""
        return tuple(layer.name for layer in self.layers)

    @property
    def n_layers(self) -> int:
        """Number of layers held."""
        return len(self.layers)

    def layer(self, which: int | str) -> LayerAttention:
        """Return a layer by position or by name (its first call).

        Args:
            which: Number of the layer, negative from the end, or its name.

        Raises:
            IndexError: There is no such number.
            KeyError: There is no such name.
            TypeError: ``which`` is neither.
        """
        if isinstance(which, str):
            for layer in self.layers:
                if layer.name == which:
                    return layer
            raise KeyError(f"no layer named {which!r}; the layers are {self._listed()}")
        number = whole_number(which, "layer", "a number, name or slice")
        if not -len(self) <= number < len(self):
            range_ = f", 0 to {len(self) - 1}: {self._listed()}" if self.layers else ""
            raise IndexError(f"no layer {number}; there are {len(self)}{range_}")
        return self.layers[number]

    def _listed(self) -> str:
        """The names of the layers, the first of many."""
        return ", ".join(self.names[:SHOWN]) + (", ..." if len(self) > SHOWN else "")

    @overload
    def __getitem__(self, which: int | str) -> Tensor: ...
    @overload
    def __getitem__(self, which: slice) -> AttentionMaps: ...
    def __getitem__(self, which: int | str | slice) -> Tensor | AttentionMaps:
        if isinstance(which, slice):
            return AttentionMaps(self.layers[which], tokens=self.tokens)
        return self.layer(which).weights

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Tensor]:
        return (layer.weights for layer in self.layers)

    def __repr__(self) -> str:
        heads = sum(layer.n_heads for layer in self.layers)
        dtypes = sorted({str(layer.dtype).removeprefix("torch.") for layer in self.layers})
        layers = "layer" if len(self) == 1 else "layers"
        return (
            f"AttentionMaps({len(self)} {layers}, {heads} head{'s' * (heads != 1)}, "
            f"{'/'.join(dtypes)})"
        )

    def to(self, *args: Any, **kwargs: Any) -> AttentionMaps:
        """Return the maps with every tensor moved as `torch.Tensor.to` does (masks stay bool)."""

        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)

        def move(layer: LayerAttention) -> LayerAttention:
            record = layer.query_key
            sink = layer.sink_mass if record is None else None  # a record makes it anew
            moved: Tensor | QueryKey
            if record is None:
                moved = layer.weights.to(*args, **kwargs)
            else:
                moved = record.to(device, dtype)
            return layer.changed(
                weights=moved,
                mask=None if layer.mask is None else layer.mask.to(moved.device),
                sink_mass=None if sink is None else sink.to(*args, **kwargs),
                sighted=None if layer.sighted is None else layer.sighted.to(moved.device),
            )

        return AttentionMaps(map(move, self.layers), tokens=self.tokens)

    def to_bertviz(self, *, kind: str | None = None, element: int = 0) -> tuple[Tensor, ...]:
        """Return what BertViz's ``head_view`` and ``model_view`` take as ``attention``.

        Args:
            kind: ``"self"`` or ``"cross"``: only layers of this kind.
            element: Which sequence of the batch; BertViz shows one.

        Returns:
            One float32 tensor ``(1, head, query, key)`` on the CPU per layer.

        Raises:
            ValueError: No such sequence, no layer of that kind, or layers of different lengths.
        """
        from attncheck.attention.adapters import to_bertviz

        return to_bertviz(self.layers, kind=kind, element=element)

    def save(self, path: str | Path) -> Path:
        """Write the maps to one safetensors file, whole or not at all; return its path."""
        from attncheck.attention.storage import save_maps

        return save_maps(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> AttentionMaps:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not one that `save` wrote, or is damaged.
        """
        from attncheck.attention.storage import load_maps

        return load_maps(Path(path))
