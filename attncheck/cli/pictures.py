"""The pictures of a scan, drawn while layers come in, so that none of them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attncheck.attention import AttentionMaps, LayerAttention
from attncheck.cli.folder import Folder
from attncheck.patterns import HeadLabel, HeadLabels
from attncheck.plot import plot_attention_heatmap, plot_head_map, plot_heads, plot_statistics
from attncheck.profile import HeadProfile

__all__ = ["Pictures"]


class Pictures:
    """Draws every layer, the clearest head of each pattern, the head map and the measures.

    Args:
        folder: Where to write.
        model: Name of the model, for titles.
        tokens: Tokens of each sequence, or None; the first is drawn.
    """

    def __init__(
        self, folder: Folder, model: str, tokens: Sequence[Sequence[str | int]] | None
    ) -> None:
        self.folder, self.model, self.tokens = folder, model, tokens
        self._clearest: dict[str, tuple[float, HeadLabel, AttentionMaps]] = {}

    def layer(self, layer: LayerAttention, labels: HeadLabels) -> None:
        """Draw the heads of one layer (the first sequence of a batch)."""
        maps = AttentionMaps([_first(layer)], tokens=self._tokens_of(layer))
        plot_heads(
            maps,
            labels=labels,
            title=f"{self.model}: layer {layer.index}, {layer.name}",
            save_path=self.folder.place(f"layer_{layer.index:02d}.png"),
        )
        for position, label in enumerate(labels):
            lift = next((s.lift for s in label.ranked if s.pattern == label.label), None)
            best = self._clearest.get(label.label)
            if lift is not None and (best is None or lift > best[0]):
                self._clearest[label.label] = (lift, label, _only_head(maps, position))

    def finish(self, profile: HeadProfile, labels: HeadLabels) -> None:
        """Draw what needs all layers."""
        for pattern, (_, label, maps) in sorted(self._clearest.items()):
            score = label.score(pattern)
            plot_attention_heatmap(
                maps,
                title=f"{self.model}\n{label.name}: {score}",
                save_path=self.folder.place(f"{label.name}_{pattern}.png"),
            )
        title, path = f"{self.model}: what each head does", self.folder.place("head_map.png")
        plot_head_map(labels, title=title, save_path=path)
        plot_statistics(profile, title=self.model, save_path=self.folder.place("statistics.png"))

    def _tokens_of(self, layer: LayerAttention) -> tuple[tuple[str | int, ...], ...] | None:
        """The tokens, where this layer's keys are those tokens."""
        if self.tokens is None or layer.kind == "cross" or len(self.tokens[0]) != layer.n_key:
            return None
        return (tuple(self.tokens[0]),)


def _first(layer: LayerAttention) -> LayerAttention:
    one = slice(0, 1)
    return replace(
        layer,
        weights=layer.weights[one],
        mask=None if layer.mask is None else layer.mask[one],
        sink_mass=None if layer.sink_mass is None else layer.sink_mass[one],
    )


def _only_head(maps: AttentionMaps, position: int) -> AttentionMaps:
    """A copy of one head, so that the rest of the layer can go."""
    layer, one = maps.layers[0], slice(position, position + 1)
    mask = layer.mask
    if mask is not None and mask.shape[1] > 1:
        mask = mask[:, one]
    sink = None if layer.sink_mass is None else layer.sink_mass[:, one].clone()
    kept = replace(
        layer,
        weights=layer.weights[:, one].clone(),
        heads=(layer.heads[position],),
        mask=mask,
        sink_mass=sink,
        n_key_value_heads=1,
    )
    return AttentionMaps([kept], tokens=maps.tokens)
