"""All recorders, in the order in which they are asked: the first that applies reports a call."""

from __future__ import annotations

from typing import Final

from attncheck.capture.call import Recorder, Sink
from attncheck.capture.flex import FlexWatcher
from attncheck.capture.functions import FunctionRecorder, Watcher
from attncheck.capture.multihead import MultiheadWatcher
from attncheck.capture.orders import Orders
from attncheck.capture.sdpa import SdpaWatcher
from attncheck.capture.softmax import SoftmaxWatcher
from attncheck.capture.traces import Traces
from attncheck.capture.transformers_interface import TransformersRecorder

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
