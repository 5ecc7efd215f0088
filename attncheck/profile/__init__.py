"""The table of head measures, as sums that add up over batches, processes and machines."""

from attncheck.profile.change import MeasureChange
from attncheck.profile.heads import HeadProfile
from attncheck.profile.layer import LayerProfile

__all__ = ["HeadProfile", "LayerProfile", "MeasureChange"]
