"""All recorders, in the order in which they are asked: the first that applies reports a call."""

from __future__ import annotations

from typing import Final

from attncheck.capture.call import Recorder, Sink
from attncheck.capture.follow.orders import Orders
from attncheck.capture.follow.softmax import SoftmaxWatcher
from attncheck.capture.follow.traces import Traces
from attncheck.capture.recorders.flex import FlexWatcher
from attncheck.capture.recorders.functions import FunctionRecorder, Watcher
from attncheck.capture.recorders.multihead import MultiheadWatcher
from attncheck.capture.recorders.sdpa import SdpaWatcher
from attncheck.capture.recorders.transformers_interface import TransformersRecorder

__all__ = ["RECORDERS"]


def _watchers(sink: Sink) -> list[Watcher]:
    traces = Traces()
    orders = Orders(sink, traces)
    return [
        SdpaWatcher(sink, orders),
        MultiheadWatcher(sink),
        FlexWatcher(sink),
        SoftmaxWatcher(sink, traces, orders),
    ]


RECORDERS: Final[tuple[Recorder, ...]] = (TransformersRecorder(), FunctionRecorder(_watchers))
