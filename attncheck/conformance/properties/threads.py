"""Calls from many threads at once."""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import replace
from itertools import product

import torch

from attncheck.conformance.bases import bases
from attncheck.conformance.capabilities import is_refusal
from attncheck.conformance.case import Case
from attncheck.conformance.examine import compare
from attncheck.conformance.numerics import expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation


def sdpa_backends(chosen: tuple[bool, bool, bool] | None = None) -> tuple[bool, bool, bool]:
    """Return which of torch's backends are enabled, after setting them if asked.

    ``torch.nn.attention.sdpa_kernel`` in two threads at once can leave them changed for good.
    """
    if chosen is not None:
        torch.backends.cuda.enable_flash_sdp(chosen[0])
        torch.backends.cuda.enable_mem_efficient_sdp(chosen[1])
        torch.backends.cuda.enable_math_sdp(chosen[2])
    return (
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
    )


@register(
    "state-threads",
    "state",
    reason="servers call from many threads: shared buffers mix their answers",
    source="functions of torch.nn.functional have no state",
    cases=bases(1, 3, 8, n_query=(17, 33), mask=("none",), dtype=("float32",)),
    script="""from concurrent.futures import ThreadPoolExecutor
inputs = [(q + i, k, v) for i in range(64)]
want = [attention(*x{flags}).clone() for x in inputs]
got = list(ThreadPoolExecutor(8).map(lambda x: attention(*x{flags}).clone(), inputs))
print(max((a - b).abs().max() for a, b in zip(got, want)))  # expected 0
assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(got, want))""",
)
def threads(subject: Subject, case: Case) -> None:
    """Call from four threads at once, each with inputs and flags of its own, many times."""
    scales = ("default",) if "scale" in subject.refused else ("default", "large")
    orders = (case.causal,) if "causal" in subject.refused else (case.causal, not case.causal)
    every = list(product(scales, orders)) * 4
    calls = [
        subject.build(replace(case, seed=case.seed + i, scale=scale, causal=causal))
        for i, (scale, causal) in enumerate(every[:4])
    ]
    wanted = [expect(call, subject.rules)["output"] for call in calls]
    wrong: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def work(number: int) -> None:
        call = calls[number]
        flags = {**call.flags, **({"attn_mask": call.mask} if call.mask is not None else {})}
        barrier.wait()
        try:
            for _ in range(40):
                returned = subject.function(call.query, call.key, call.value, **flags)
                output = returned[0] if subject.returns_weights else returned
                compare(output, wanted[number], "output")
        except Exception as error:
            if not is_refusal(error):  # torch's own switches of backend are global
                wrong.append(error)

    subject.call(calls[0])  # a refusal is a refusal here too
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    backends = sdpa_backends()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pool = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
            for thread in pool:
                thread.start()
            for thread in pool:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
        sdpa_backends(backends)
    if wrong:
        raise Violation(f"calls from several threads disturb each other: {wrong[0]}")
