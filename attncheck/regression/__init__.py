"""Head behaviour under version control: records of heads, and what counts as a change."""

from attncheck.regression.baseline import Baseline
from attncheck.regression.capture import Capture, open_capture
from attncheck.regression.changes import Drift, HeadChange, Judgement, MeasureMove
from attncheck.regression.compare import Verdict, compare_captures, judge_capture
from attncheck.regression.judge import judge
from attncheck.regression.message import Place, change_message, missing_message
from attncheck.regression.record import HeadRecord, records_of
from attncheck.regression.storage import Staged, baseline_path, load_weights, write_staged
from attncheck.regression.variants import Choice, choose, target_of

__all__ = [
    "Baseline",
    "Capture",
    "Choice",
    "Drift",
    "HeadChange",
    "HeadRecord",
    "Judgement",
    "MeasureMove",
    "Place",
    "Staged",
    "Verdict",
    "baseline_path",
    "change_message",
    "choose",
    "compare_captures",
    "judge",
    "judge_capture",
    "load_weights",
    "missing_message",
    "open_capture",
    "records_of",
    "target_of",
    "write_staged",
]
