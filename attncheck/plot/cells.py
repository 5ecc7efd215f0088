"""From attention of any form to the cells of one picture: choose a head, add up long sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attncheck.attention import AttentionMaps, LayerAttention, head_name
from attncheck.attention.arguments import whole_number

__all__ = ["Cells", "cells_of", "select_batch", "select_head", "select_layers"]


@dataclass(frozen=True)
class Cells:
    """One head as it is drawn.

    Attributes:
        values: float64 ``(row, column)``: the share of a query's attention on the column's keys,
            averaged over the row's queries. With blocks of one token these are the weights, and
            rows sum to 1 whatever the blocks.
        hidden: bool, same shape: no query of the cell may see a key of it (and none does).
        query_block: Queries per row.
        key_block: Keys per column.
    """

    values: NDArray[np.float64]
    hidden: NDArray[np.bool_]
    query_block: int
    key_block: int

    @property
    def blocked(self) -> bool:
        """Whether a cell stands for more than one query and key."""
        return self.query_block > 1 or self.key_block > 1

    @property
    def shown(self) -> np.ma.MaskedArray[Any, np.dtype[np.float64]]:
        """The values with hidden cells masked, as `matplotlib.axes.Axes.imshow` takes them."""
        return np.ma.masked_array(self.values, self.hidden)


def select_layers(maps: AttentionMaps, layer: int | str | None) -> tuple[LayerAttention, ...]:
    """Return all layers, or the one of that position (negative from the end) or name."""
    if layer is None:
        return maps.layers
    try:
        return (maps.layer(layer),)
    except IndexError:
        raise ValueError(
            f"layer: {layer} of {len(maps)} layers; expected {-len(maps)} to {len(maps) - 1}"
        ) from None
    except KeyError as error:
        raise ValueError(f"layer: {error.args[0]}") from None


def select_batch(layers: Iterable[LayerAttention], batch: int | None) -> tuple[int, ...]:
    """Return the batch element to draw in each layer.

    Raises:
        ValueError: There are several and none was chosen, or there is no such one.
    """
    chosen = []
    if batch is not None:
        batch = whole_number(batch, "batch", "the number of a sequence")
    for layer in layers:
        if batch is None and layer.batch > 1:
            raise ValueError(
                f"attention: a batch of {layer.batch} sequences, and a picture shows one; "
                f"pass batch=0 to batch={layer.batch - 1}"
            )
        element = batch or 0
        if not -layer.batch <= element < layer.batch:
            raise ValueError(f"batch: {batch} of a batch of {layer.batch} sequences")
        chosen.append(element % layer.batch)
    return tuple(chosen)


def select_head(
    maps: AttentionMaps, layer: int | str | None, head: int | str | None
) -> tuple[LayerAttention, int]:
    """Return one layer and the position of one head in it.

    Args:
        maps: Where to look.
        layer: Position or module name; None: the only one.
        head: The model's number of the head, or a name such as ``"L1H0"`` (which settles the
            layer too); None: the only one.

    Raises:
        ValueError: The choice leaves several heads, or none.
    """
    layers = select_layers(maps, layer)
    found = [
        (held, position)
        for held in layers
        for position, number in enumerate(held.heads)
        if head is None or head in (number, head_name(held.index, number))
    ]
    if len(found) == 1:
        return found[0]
    names = [head_name(held.index, number) for held in layers for number in held.heads]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if not found:
        raise ValueError(f"head: no head {head!r}; the heads are {listed}")
    raise ValueError(
        f"attention: holds {len(found)} heads ({listed}), and a heatmap shows one; pass "
        f'head="{names[0]}" or layer= and head=, or draw them all with plot_heads'
    )


def cells_of(layer: LayerAttention, head: int, batch: int, most: int) -> Cells:
    """Turn one head into at most ``most`` rows and columns.

    Args:
        layer: Holds the head.
        head: Position of the head in the layer.
        batch: Batch element.
        most: Longer axes are cut into blocks of equal length (the last may be shorter).
    """
    one = replace(
        layer,
        weights=layer.weights[batch : batch + 1, head : head + 1],
        mask=_one_of(layer.mask, batch, head),
        heads=(layer.heads[head],),
    )
    weights = one.weights[0, 0]
    if weights.dtype not in (torch.float32, torch.float64):
        weights = weights.float()
    given = weights.cpu().numpy()
    visible = one.visible()[0, 0].cpu().numpy()
    valid = one.valid_rows()[0, 0].cpu().numpy()
    hidden = ~valid[:, None] | (~visible & (given == 0))
    given = np.where(valid[:, None], given, 0)
    query_block, key_block = (-(-length // most) for length in given.shape)
    values = _add_up(_add_up(given, key_block, axis=1), query_block, axis=0)
    rows = _add_up(valid, query_block, axis=0)
    shown = _add_up(_add_up(~hidden, key_block, axis=1), query_block, axis=0)
    return Cells(values / np.maximum(rows, 1)[:, None], shown == 0, query_block, key_block)


def starts_of(length: int, block: int) -> Sequence[int]:
    """First position of each block."""
    return range(0, length, block)


def _add_up(values: NDArray[Any], block: int, axis: int) -> NDArray[np.float64]:
    starts = np.arange(0, values.shape[axis], block)
    return np.asarray(np.add.reduceat(values, starts, axis=axis, dtype=np.float64))


def _one_of(mask: torch.Tensor | None, batch: int, head: int) -> torch.Tensor | None:
    if mask is None:
        return None
    first = slice(batch, batch + 1) if mask.shape[0] > 1 else slice(None)
    second = slice(head, head + 1) if mask.shape[1] > 1 else slice(None)
    return mask[first, second]
