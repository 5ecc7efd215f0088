"""The front door: what people have becomes `AttentionMaps`, and nobody else reshapes."""

from attncheck.attention.front_door import AttentionLike, as_attention
from attncheck.attention.maps import AttentionMaps, LayerAttention, head_name
from attncheck.attention.masks import as_visible

__all__ = [
    "AttentionLike",
    "AttentionMaps",
    "LayerAttention",
    "as_attention",
    "as_visible",
    "head_name",
]
