"""Find out what an implementation supports, before the battery chooses its inputs."""

from __future__ import annotations

from dataclasses import replace

from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.numerics import expect, worst
from attncheck.conformance.report import Failure
from attncheck.conformance.reproduce import oracle_script
from attncheck.conformance.subject import Crash, Refused, Subject

__all__ = ["probe"]

PLAIN = Case(batch=2, kv_heads=2, n_query=4, n_key=4, size=8, value_size=8)

FEATURES = {
    "rank2": replace(PLAIN, rank=2).legal(),
    "rank3": replace(PLAIN, rank=3).legal(),
    "rank5": replace(PLAIN, rank=5).legal(),
    "gqa": replace(PLAIN, ratio=2).legal(),
    "bool": replace(PLAIN, mask="bool"),
    "float": replace(PLAIN, mask="float"),
    "causal": replace(PLAIN, causal=True),
    "mask_with_causal": replace(PLAIN, mask="bool", causal=True),
    "scale": replace(PLAIN, scale="given"),
    "value_size": replace(PLAIN, value_size=4),
    "rectangular": replace(PLAIN, n_key=6),
    "strided": replace(PLAIN, layout="heads last"),
}


def probe(subject: Subject, plan: Plan) -> tuple[Plan, Failure | None]:
    """Return the plan narrowed to what is supported, and a failure if nothing is.

    Only clear refusals narrow; a crash or a wrong answer is left for a property to find.
    """
    broken = _nothing_usable(subject, plan)
    if broken is not None:
        return plan, broken
    dtypes = tuple(
        dtype for dtype in plan.dtypes if not _refuses(subject, replace(PLAIN, dtype=dtype))
    )
    if not dtypes:
        return plan, _refuses_everything(subject)
    accepted = dtypes
    if "float64" in dtypes and len(dtypes) > 1 and _float64_is_float32(subject):
        dtypes = tuple(dtype for dtype in dtypes if dtype != "float64")
    plain = replace(PLAIN, dtype=dtypes[0])
    refused = {
        name
        for name, case in FEATURES.items()
        if _refuses(subject, replace(case, dtype=plain.dtype))
    }
    if subject.capabilities.gradients is False:
        refused.add("gradients")
    found = replace(plan, dtypes=dtypes, refused=frozenset(refused), accepted=accepted)
    return found, None


def _float64_is_float32(subject: Subject) -> bool:
    """Whether float64 inputs give answers that are right to float32 only.

    That is one failure, of the property ``accuracy-float64``, and not one of every property.
    """
    inputs = subject.build(replace(PLAIN, dtype="float64"))
    expected = expect(inputs, subject.rules)["output"]
    try:
        output = subject.call(inputs).output
    except (Refused, Crash):
        return False
    if output.shape != expected.value.shape or worst(output, expected) is None:
        return False
    error = (output.detach().double() - expected.value).abs()
    return bool((error <= 1e-5 * (1 + expected.value.abs())).all())


def _refuses(subject: Subject, case: Case) -> bool:
    reason = subject.capabilities.allows(case)
    if reason:
        subject.refusals[f"declared {reason}"] += 1
        return True
    try:
        subject.call(subject.build(case))
    except Refused as refusal:
        if subject.capabilities.promises(case):
            return False  # a property will find it, and fail
        subject.refusals[str(refusal)] += 1
        return True
    except Crash:
        return False
    return False


def _nothing_usable(subject: Subject, plan: Plan) -> Failure | None:
    """Return a failure if no plain call gives a tensor of the right shape: one, and not all."""
    failure = None
    for dtype in plan.dtypes:
        case = replace(PLAIN, dtype=dtype)
        if subject.capabilities.allows(case):
            continue
        inputs = subject.build(case)
        try:
            output = subject.call(inputs).output
        except Refused:
            continue
        except Crash as crash:
            failure = failure or _plain_failure(subject, case, crash.message)
            continue
        if output.shape == inputs.query.shape:
            if subject.first is None:
                subject.first = inputs, output.detach().clone()
            return None
        text = f"shape of the output is {tuple(output.shape)}, expected {tuple(inputs.query.shape)}"
        failure = failure or _plain_failure(subject, case, text)
    return failure


def _refuses_everything(subject: Subject) -> Failure:
    words = next(iter(subject.refusals), "")
    text = f"refuses plain inputs of every dtype: {words}"
    if "argument" in words:
        text += " (it is called as attention(query, key, value), further arguments by name)"
    return _plain_failure(subject, PLAIN, text)


def _plain_failure(subject: Subject, case: Case, text: str) -> Failure:
    return Failure(
        id="plain-input",
        reason="while no plain call works, nothing else is checked",
        violated=text,
        severity=float("inf"),
        input=case.describe(),
        evidence={},
        mechanism="",
        script=oracle_script(case, subject),
        case=case.to_dict(),
    )
