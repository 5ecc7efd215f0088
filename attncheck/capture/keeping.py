"""From a call of attention to the layer that is kept of it, and what that may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from attncheck.attention import LayerAttention, QueryKey
from attncheck.capture.call import AttentionCall
from attncheck.capture.fidelity import compared_rows, unfaithful
from attncheck.capture.memory import Budget, Estimate
from attncheck.capture.rebuild import Snapshots, copied, of_queries, record_of
from attncheck.capture.select import Chosen, LayerSelection, choose
from attncheck.capture.transfer import Transfer
from attncheck.capture.visibility import Visibility, VisibilityReader
from attncheck.tolerances import TOLERANCES, tolerance_for

__all__ = ["Keeper", "Settings", "Store", "checked_device", "checked_dtype", "checked_store"]

Store: TypeAlias = Literal["weights", "qk", "profile"]
"""What is kept of a layer: its weights, what they are made from, or its measures only."""

Shape: TypeAlias = tuple[int, int, int, int]
Made: TypeAlias = tuple[Tensor, Tensor | None]
"""Weights and sink mass."""

RAN_EAGERLY: Final = "compiled by torch.compile, ran eagerly while it was captured"
OWN_WEIGHTS: Final = "weights held: the model makes them itself and shows no query and key"
OTHER_WEIGHTS: Final = "weights held: the model's own are not those of its query and key"


@dataclass(frozen=True)
class Settings:
    """What to keep of each layer.

    Attributes:
        layers: Which layers.
        heads: Which heads of each.
        queries: Which queries of each.
        device: Where kept tensors go; None leaves them where they were computed.
        dtype: Of kept weights; None: as computed, float32 at least where rebuilt.
        store: What is kept.
        memory_limit: See `Budget`.
        keeps: Layers outlive the call, so that weights which the model made itself are copied.
        scratch: Layers' weights may be made whole for whoever receives them.
        compiled: Paths of compiled modules; an empty one stands for all.
    """

    layers: LayerSelection
    heads: slice | tuple[int, ...] | None = None
    queries: slice | tuple[int, ...] | None = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    store: Store = "weights"
    memory_limit: float | None = None
    keeps: bool = True
    scratch: bool = True
    compiled: tuple[str, ...] = ()


def checked_dtype(dtype: Any) -> torch.dtype | None:
    """Return the dtype.

    Raises:
        ValueError: It cannot hold weights.
    """
    if dtype is None or (
        isinstance(dtype, torch.dtype) and str(dtype).removeprefix("torch.") in TOLERANCES
    ):
        return dtype
    raise ValueError(
        f"dtype: {dtype!r} cannot hold attention weights; expected torch.float32 or another of "
        f"{', '.join(TOLERANCES)}, or None to keep the one they are computed in"
    )


def checked_device(device: Any) -> torch.device | None:
    """Return the device, after asking whether tensors can be there.

    Raises:
        ValueError: There is no such device.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device: {device!r} cannot keep weights ({reason}); expected 'cpu', a device of this "
            "machine, or None to leave them on the model's"
        ) from None
    return found


def checked_store(store: Any) -> Store:
    """Return what to store.

    Raises:
        ValueError: It is none of the three.
    """
    if store not in get_args(Store):
        raise ValueError(f"store: got {store!r}; expected 'weights', 'qk' or 'profile'")
    kind: Store = store
    return kind


class Keeper:
    """Turns calls into layers.

    Args:
        settings: What to keep of each.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._snapshots = Snapshots()
        self._reader = VisibilityReader()
        self._transfer = Transfer(settings.device)
        self._budget = Budget(settings.memory_limit)
        self._choices: dict[tuple[str, int, torch.device], Chosen] = {}

    def layer(
        self, call: AttentionCall, index: int, repeat: int, to_come: int
    ) -> tuple[LayerAttention, str | None]:
        """Make a layer, and say why it is not faithful, if it is not.

        Args:
            call: The call.
            index: Number of the layer.
            repeat: How often the module had been called before.
            to_come: How many layers like it are still expected.

        Raises:
            ValueError: A head or query that is wanted does not exist.
            CaptureError: What is to be kept would not fit into memory.
        """
        settings, device = self._settings, call.output.device
        heads, queries = self._chosen("heads", call), self._chosen("queries", call)
        describes = call.query is not None and (call.weights is None or settings.store != "weights")
        record = record_of(call, heads) if describes else None
        batch, _, n_query, n_key = call.shape
        shape = batch, len(heads.numbers), len(queries.numbers), n_key
        self._admit(call, record, shape, to_come)
        made = None
        as_made = queries.index is None and settings.dtype is None
        if record is not None and as_made and self._makes(record):
            made = record.weights()
        hides = call.mask is not None or call.bias is not None
        if hides and (call.hides_by_truth or (record is not None and made is None)):
            # Copied once for all layers that share them, before anybody changes them.
            mask, bias = self._snapshots.of(call.mask), self._snapshots.of(call.bias)
            call = replace(call, mask=mask, bias=bias)
            record = record_of(call, heads) if describes else None
        seen = self._reader.read(
            call.mask, n_query, n_key, top_left=call.causal, decoding=call.decoding
        )
        rows = compared_rows(n_query, device)
        block, record, note = self._compared(call, record, made, heads, rows)
        status = unfaithful(call, block, rows, heads, _of(seen.rows, heads))
        held, sink_mass = self._held(call, record, made, heads, queries)
        mask = _of(seen.mask, heads)
        layer = LayerAttention(
            held,
            name=call.name,
            index=index,
            kind=call.kind,
            backend=call.backend,
            n_key_value_heads=call.n_key_value_heads,
            mask=None if mask is None else self._transfer.of(queries.of(mask, 2)),
            causal=seen.causal,
            heads=tuple(call.first_head + number for number in heads.numbers),
            sink_mass=None if sink_mass is None else self._transfer.of(sink_mass),
            call=repeat,
            status="exact" if status is None else f"unfaithful: {status}",
            model_dtype=str(call.output.dtype).removeprefix("torch."),
            model_device=str(call.output.device),
            queries=() if queries.index is None else queries.numbers,
            n_query_in_call=n_query,
            note="; ".join(part for part in (note, call.note, self._eagerly(call.name)) if part),
        )
        return self._sighted(layer, seen, heads), status

    def _eagerly(self, name: str) -> str:
        paths = self._settings.compiled
        if not paths:
            return ""
        return RAN_EAGERLY if any(f"{name}.".startswith(path) for path in paths) else ""

    def finish(self) -> None:
        """Wait until everything that is kept holds its numbers."""
        self._transfer.finish()

    def _compared(
        self,
        call: AttentionCall,
        record: QueryKey | None,
        made: Made | None,
        heads: Chosen,
        rows: Tensor,
    ) -> tuple[Tensor, QueryKey | None, str]:
        """Return the rows that are compared, the record if the layer holds it, and why not."""
        if call.weights is None:
            assert record is not None
            if made is not None:
                return made[0].index_select(2, rows), record, ""
            return record.weights(rows)[0], record, ""
        own = heads.of(call.weights.detach(), 1).index_select(2, rows)
        if self._settings.store == "weights":
            return own, None, ""
        if record is None:
            return own, None, OWN_WEIGHTS
        error = (record.weights(rows)[0] - own).abs().amax()
        if not bool(error <= tolerance_for(own.dtype).row_sum):
            return own, None, OTHER_WEIGHTS
        return own, record, ""

    def _held(
        self,
        call: AttentionCall,
        record: QueryKey | None,
        made: Made | None,
        heads: Chosen,
        queries: Chosen,
    ) -> tuple[Tensor | QueryKey, Tensor | None]:
        """Return what the layer holds, and its sink mass where that is known by now."""
        settings = self._settings
        if record is None:
            assert call.weights is not None
            weights = queries.of(heads.of(call.weights.detach(), 1), 2)
            sink_mass = _rest(weights) if call.sink_is_rest else None
            return self._kept(weights, call.weights), sink_mass
        record, dtype = of_queries(record, queries), settings.dtype
        if made is None and self._makes(record):
            made = replace(record, dtype=dtype).weights()
        if made is not None:
            weights, sink_mass = made
            return self._transfer.of(weights), sink_mass
        if settings.store == "profile":
            return record if dtype is None else replace(record, dtype=dtype), None
        record = copied(record, dtype=dtype, lasting=settings.store != "weights")
        return (
            record.moved(self._transfer.of) if self._transfer.moves(record.query) else record
        ), None

    def _makes(self, record: QueryKey) -> bool:
        """Whether weights are made at once: they move, or take less than what they are made of."""
        if self._settings.store != "weights":
            return False
        dtype = self._settings.dtype or record.weights_dtype
        size = math.prod(record.shape) * dtype.itemsize
        return self._transfer.moves(record.query) or record.nbytes > size

    def _kept(self, weights: Tensor, own: Tensor) -> Tensor:
        """Bring weights that the model made to where they are kept, as a copy."""
        kept = self._transfer.of(weights.to(self._settings.dtype or weights.dtype))
        shared = kept.data_ptr() == own.data_ptr()
        return kept.clone() if shared and self._settings.keeps else kept

    def _admit(
        self, call: AttentionCall, record: QueryKey | None, shape: Shape, to_come: int
    ) -> None:
        """Count what this layer will take, before any of it is made."""
        settings, rebuilt = self._settings, call.weights is None
        made_in = call.output.dtype if record is None else record.computed_in
        dtype = settings.dtype or (made_in if call.weights is None else call.weights.dtype)
        cells, what = math.prod(shape), "weights"
        held, scratch = cells * dtype.itemsize, 2 * cells * made_in.itemsize * rebuilt
        if settings.store == "qk" and record is not None:
            rest = 1 - shape[2] / max(call.shape[2], 1)
            held, scratch = record.nbytes - int(rest * record.query.nbytes), 0
            what = "query and key, for weights"
        elif not settings.keeps:
            held, scratch = 0, scratch * settings.scratch
        device = settings.device or call.output.device
        estimate = Estimate(call.name, shape, dtype, held, scratch, to_come, what)
        self._budget.admit(estimate, device)

    def _chosen(self, argument: Literal["heads", "queries"], call: AttentionCall) -> Chosen:
        """Return the heads or queries to keep of a call."""
        device, count = call.output.device, call.shape[1 if argument == "heads" else 2]
        key = argument, count, device
        if key not in self._choices:
            choice = getattr(self._settings, argument)
            self._choices[key] = choose(choice, count, device, argument)
        return self._choices[key]

    def _sighted(self, layer: LayerAttention, seen: Visibility, heads: Chosen) -> LayerAttention:
        """Say which of a few queries are no padding, which only the others' view of them tells."""
        if not layer.queries or layer.mask is None or layer.mask.shape[2] == 1:
            return layer
        if not layer.positional:
            return layer
        keys = _of(seen.keys, heads)
        assert keys is not None
        own = layer.query_positions().clamp(min=0)
        sighted = layer.visible().any(-1) & keys.to(layer.device)[..., own]
        return layer.changed(sighted=sighted)


def _of(tensor: Tensor | None, heads: Chosen) -> Tensor | None:
    return None if tensor is None else heads.of(tensor, 1)


def _rest(weights: Tensor) -> Tensor:
    return (1 - weights.sum(-1, dtype=torch.float64)).clamp_(min=0).to(weights.dtype)
