"""The implementation under test, and how a property calls it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attncheck.conformance.capabilities import Capabilities, is_refusal
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.numerics import Reference
from attncheck.conformance.oracle import PLAIN, Rules

__all__ = ["Crash", "Refused", "Result", "Subject", "Violation"]


HINT = "; say returns_weights=True if the function returns (output, weights)"


class Refused(Exception):  # noqa: N818 - no error: the implementation's right
    """The implementation says that it does not support this input."""


class Violation(Exception):  # noqa: N818 - the verdict of a property
    """A property does not hold.

    Args:
        message: What was violated, in one line.
        severity: How far: times the allowance; infinite for crashes and NaN.
        evidence: Expected, got, position, as text by name.
        inputs: The call that shows it, when its output can be compared to known mistakes.
        got: The output of that call.
        argument: Which gradient is wrong; empty for the output.
    """

    def __init__(
        self,
        message: str,
        severity: float = float("inf"),
        evidence: Mapping[str, str] | None = None,
        inputs: Inputs | None = None,
        got: Tensor | None = None,
        argument: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.severity = severity
        self.evidence = dict(evidence or {})
        self.inputs = inputs
        self.got = got
        self.argument = argument


class Crash(Violation):
    """The implementation raised something that is no clear refusal."""


@dataclass(frozen=True)
class Result:
    """What an implementation returned."""

    output: Tensor
    weights: Tensor | None


@dataclass
class Subject:
    """An implementation under test.

    Attributes:
        function: The attention function.
        returns_weights: Whether it returns ``(output, weights)``.
        capabilities: What its author declared.
        device: Where inputs are made.
        rules: What attention means for it: an extension's arithmetic.
        refusals: What it refused, with the number of inputs.
        calls: How often it was called.
        original: What an extension's adapter wraps, for properties of the extension itself.
        dtypes: Names of the dtypes that it supports, as the probe found.
        refused: Names of features that it does not support, as the probe found.
        first: Inputs and output of the very first call, which the probe makes.
        references: Gives the arithmetic that a case is judged by, where several implementations
            are judged in turn and share it.
    """

    function: Callable[..., Any]
    returns_weights: bool = False
    capabilities: Capabilities = field(default_factory=Capabilities)
    device: str = "cpu"
    rules: Rules = PLAIN
    refusals: Counter[str] = field(default_factory=Counter)
    refused: frozenset[str] = frozenset()
    dtypes: tuple[str, ...] = ()
    calls: int = 0
    original: Callable[..., Any] | None = None
    first: tuple[Inputs, Tensor] | None = None
    references: Callable[[Case, Inputs], Reference] | None = None

    def call(self, inputs: Inputs, **changes: Any) -> Result:
        """Call the implementation.

        Args:
            inputs: Tensors and flags.
            changes: Flags that replace or join those of ``inputs``.

        Raises:
            Refused: The implementation does not support it.
            Crash: It raised anything else, or returned something else than asked.
        """
        flags = {**inputs.flags, **changes}
        if inputs.mask is not None:
            flags = {"attn_mask": inputs.mask, **flags}
        return self.invoke(inputs.query, inputs.key, inputs.value, **flags)

    def invoke(self, *args: Any, **flags: Any) -> Result:
        """Call the implementation with any arguments; see `call`."""
        if flags.get("dropout_p") and self.capabilities.dropout is False:
            raise Refused("declared dropout=False")
        self.calls += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                returned = self.function(*args, **flags)
        except Exception as error:
            text = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
                if str(error).strip()
                else type(error).__name__
            )
            # The documentation forbids both at once, so any loud answer will do.
            forbidden = flags.get("is_causal") and flags.get("attn_mask") is not None
            if is_refusal(error) or forbidden:
                raise Refused(text) from error
            raise Crash(f"raised {text}") from error
        return self._read(returned)

    def _read(self, returned: Any) -> Result:
        output, weights = returned, None
        if self.returns_weights:
            if not (isinstance(returned, tuple | list) and len(returned) == 2):
                raise Crash(f"returned {type(returned).__name__}, expected (output, weights)")
            output, weights = returned
        for name, tensor in (("output", output), ("weights", weights)):
            if not isinstance(tensor, Tensor) and (name == "output" or self.returns_weights):
                hint = HINT if isinstance(tensor, tuple | list) else ""
                raise Crash(f"{name} is {type(tensor).__name__}, expected a tensor{hint}")
        return Result(output, weights)

    def build(self, case: Case) -> Inputs:
        """Make the tensors of a case on the subject's device."""
        return case.build(self.device)
