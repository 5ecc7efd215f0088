"""Watch heads while a model trains: samples, alerts, and the history of a run."""

from attncheck.monitor.history import HeadHistory
from attncheck.monitor.monitor import HeadMonitor
from attncheck.monitor.rules import Thresholds
from attncheck.monitor.sample import HeadAlert, HeadSample, units

__all__ = ["HeadAlert", "HeadHistory", "HeadMonitor", "HeadSample", "Thresholds", "units"]
