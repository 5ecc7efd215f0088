"""Pictures of attention: they return matplotlib objects, show nothing, leave pyplot alone."""

from attncheck.plot.costs import plot_costs
from attncheck.plot.head_map import plot_head_map
from attncheck.plot.heads import plot_heads
from attncheck.plot.heatmap import plot_attention_heatmap
from attncheck.plot.history import plot_history
from attncheck.plot.statistics import plot_statistics

__all__ = [
    "plot_attention_heatmap",
    "plot_costs",
    "plot_head_map",
    "plot_heads",
    "plot_history",
    "plot_statistics",
]
