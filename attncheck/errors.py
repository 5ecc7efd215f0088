"""What attncheck raises: exceptions of its own, beside `ValueError` and `TypeError`."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BaselineError",
    "CaptureError",
    "CheckFailure",
    "HeadAlertError",
    "MonitorWarning",
    "UncheckedWarning",
]


class CheckFailure(AssertionError):  # noqa: N818 - the name is the verdict a reader sees
    """An attention property does not hold.

    Args:
        message: The rendered text, verdict first.
        finding: The `attncheck.checks.Finding` behind the text: rule, worst
            offenders, a small CPU copy as evidence.

    Example:
        >>> raise CheckFailure("not causal: 3 of 960 future weights > 1e-06")
        Traceback (most recent call last):
        attncheck.CheckFailure: not causal: 3 of 960 future weights > 1e-06
    """

    def __init__(self, message: str, finding: Any = None) -> None:
        super().__init__(message)
        self.finding = finding


class CaptureError(RuntimeError):
    """Attention could not be captured, or what was captured is not what the layer computed.

    Example:
        >>> raise CaptureError("captured 0 of 12 attention layers")
        Traceback (most recent call last):
        attncheck.CaptureError: captured 0 of 12 attention layers
    """


class BaselineError(ValueError):
    """A recorded baseline cannot be read: cut short, damaged, or not written by attncheck.

    Example:
        >>> raise BaselineError("__heads__/test_a/test_x.json is not readable JSON")
        Traceback (most recent call last):
        attncheck.BaselineError: __heads__/test_a/test_x.json is not readable JSON
    """


class HeadAlertError(RuntimeError):
    """A head went wrong in training; only where a `HeadMonitor` was told to raise.

    Args:
        message: What happened, one line a head.
        alerts: The `attncheck.monitor.HeadAlert` behind it.

    Example:
        >>> raise HeadAlertError("step 150, L1H0: max logit: scores reach 412, over 100")
        Traceback (most recent call last):
        attncheck.HeadAlertError: step 150, L1H0: max logit: scores reach 412, over 100
    """

    def __init__(self, message: str, alerts: Any = ()) -> None:
        super().__init__(message)
        self.alerts = tuple(alerts)


class MonitorWarning(UserWarning):
    """A head went wrong in training, or a `HeadMonitor` could not look.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("ignore", MonitorWarning)
    """


class UncheckedWarning(UserWarning):
    """A promise was not tried: it could not be told whether the model makes it.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", UncheckedWarning)
    """


# Short names in tracebacks and summaries: `attncheck.CheckFailure`.
for _error in (
    BaselineError,
    CheckFailure,
    CaptureError,
    HeadAlertError,
    MonitorWarning,
    UncheckedWarning,
):
    _error.__module__ = "attncheck"
