"""Several calls, one after the other: sizes that shrink, forward passes before backward passes."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch.multiprocessing.reductions import StorageWeakRef

from attncheck.conformance.bases import bases
from attncheck.conformance.case import Case
from attncheck.conformance.design import Plan
from attncheck.conformance.examine import agrees, check_gradients, requiring_grad
from attncheck.conformance.numerics import Reference
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Refused, Subject, Violation

CALLS = 40
"""More than a cache of recent calls holds."""

LARGER = {"n_key": 5, "n_query": 5, "batch": 1, "kv_heads": 1, "size": 8, "value_size": 8}
"""What the earlier, larger call has more of each axis."""


def shrinking_cases(plan: Plan) -> Sequence[Case]:
    """Return plain cases first: a masked or causal call often has a buffer of its own."""
    plain = Case(batch=2, kv_heads=2, n_query=4, n_key=9, dtype=plan.dtypes[0])
    found = bases(
        2, 8, 30, mask=("none", "none", "bool", "float"), n_query=(4, 17), n_key=("same", 9),
        grad=(False, False, True), causal=(False, False, True),
    )(plan)  # fmt: skip
    return [plan.fit(plain), *found]


@register(
    "state-sizes-shrink",
    "state",
    reason="a buffer kept from a larger call must not show through in the next, smaller one",
    source="no report; workspaces that grow to the largest call so far",
    cases=shrinking_cases,
    script="""longer = torch.cat([k, k + 1], -2), torch.cat([v, v + 100], -2)
want = attention(q, k.clone(), v.clone(){flags})
attention(q, *longer)
error = {call} - want
print(error.abs().max())  # expected 0
assert error.abs().max() < 1e-3""",
)
def sizes_shrink(subject: Subject, case: Case) -> None:
    """For each axis call with more of it, and at once with less."""
    for name, more in LARGER.items():
        changes: dict[str, Any] = {name: getattr(case, name) + more}
        with suppress(Refused):
            agrees(subject, replace(case, **changes, seed=case.seed + 1))
        try:
            agrees(subject, case)
        except Violation as violation:
            violation.message += f", after a call with a larger {name}"
            raise


@register(
    "state-memory-released",
    "state",
    reason="a call that keeps its inputs or its output makes a server run out of memory",
    source="lists and caches without a bound, keyed by tensors; no report",
    cases=bases(1, 4, 8, mask=("none", "bool", "float"), n_query=(4, 17), heads=((2, 1), (3, 1))),
    script="""from torch.multiprocessing.reductions import StorageWeakRef
kept = [StorageWeakRef({call}.untyped_storage()) for _ in range(40)]
print(sum(not memory.expired() for memory in kept))  # expected 0, a few where some are cached
assert any(memory.expired() for memory in kept)""",
)
def memory_released(subject: Subject, case: Case) -> None:
    """Call with new inputs many times; a cache may hold some of them, but not all."""
    held: dict[str, list[Any]] = defaultdict(list)
    for number in range(CALLS):
        inputs = subject.build(replace(case, seed=case.seed + number))
        output = subject.call(inputs).output
        for name, tensor in {**inputs.tensors, "the output": output}.items():
            held[name].append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]
        del inputs, output, tensor
    gc.collect()
    for name, memory in held.items():
        if not any(kept.expired() for kept in memory):
            raise Violation(f"{name} of each of {CALLS} calls is still held after all of them")


@register(
    "gradient-two-calls",
    "gradient",
    reason="several forward passes, then their backward passes: each needs what it saved itself",
    source="no report; siamese networks and pipeline schedules run so",
    cases=bases(3, 14, 50, grad=(True,), n_query=(1, 4, 17), pattern=("random", "empty rows")),
    script="""q.requires_grad_()
got = {call}
attention(q.detach().flip(-2).requires_grad_(), k + 1, v - 1{flags})
late, = torch.autograd.grad(got.square().sum(), q)
error = late - torch.autograd.grad({call}.square().sum(), q)[0]
print(error.abs().max())  # expected 0
assert error.abs().max() < 1e-2""",
)
def two_calls(subject: Subject, case: Case) -> None:
    """Call with other numbers, scales, masks of one shape; only then go backward, in that order."""
    others = [
        case,
        replace(case, seed=case.seed + 31),
        replace(case, scale="given", seed=case.seed + 32),
        replace(case, mask="none", causal=not case.causal, seed=case.seed + 33).legal(),
    ]
    made = []
    for other in others:
        asked = requiring_grad(subject.build(other))
        with suppress(Refused):
            made.append((asked, subject.call(asked)))
    for number, (asked, result) in enumerate(made):
        try:
            check_gradients(subject, asked, result, Reference(asked, subject.rules, grad=True))
        except Violation as violation:
            if number + 1 < len(made):
                violation.message += ", where other calls came before the backward pass"
            raise
