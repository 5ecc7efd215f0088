"""The front door: what people have becomes `AttentionMaps`, and nobody else reshapes."""

from attncheck.attention.front_door import AttentionLike, as_attention
from attncheck.attention.maps import AttentionMaps, LayerAttention, head_name
from attncheck.attention.masks import as_visible
from attncheck.attention.query_key import QueryKey

__all__ = [
    "AttentionLike",
    "AttentionMaps",
    "LayerAttention",
    "QueryKey",
    "as_attention",
    "as_visible",
    "head_name",
]
