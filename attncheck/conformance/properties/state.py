"""What a call leaves behind: nothing. Inputs, outputs, memory between calls, globals."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attncheck.conformance.bases import bases, designed
from attncheck.conformance.case import Case
from attncheck.conformance.examine import compare
from attncheck.conformance.kinds import LAYOUTS
from attncheck.conformance.numerics import Expected, expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Refused, Subject, Violation

PURE = "a function of its arguments, as the documentation of torch.nn.functional has it"


def identical(first: Tensor, second: Tensor, like: Expected) -> bool:
    """Whether two outputs are equal, or differ by a fraction of what rounding may do."""
    if torch.equal(first, second):
        return True
    allowed = 0.5 * like.allowed.expand_as(like.value)
    return bool(((first.double() - second.double()).abs() <= allowed).all())


@register(
    "state-inputs-untouched",
    "state",
    reason="scaling or masking in place ruins the caller's query, key, value or mask",
    source=PURE,
    cases=designed(
        8, 60, 200, layout=tuple(LAYOUTS), mask=("none", "bool", "float"),
        mask_shape=("qk", "b11k", "bhqk"), causal=(False, True), scale=("default", "given"),
        heads=((2, 1), (1, 2)), n_query=(1, 5, 33), n_key=("same", 7), batch=(1, 2),
    ),
    script="""before = [(x.clone(), x._version) for x in (q, k, v)]
{call}
same = [torch.equal(a, x) and n == x._version for (a, n), x in zip(before, (q, k, v))]
print(same)  # expected True, True, True
assert all(same)""",
)  # fmt: skip
def inputs_untouched(subject: Subject, case: Case) -> None:
    """Compare values, versions, strides and the memory around the inputs, before and after."""
    inputs = subject.build(case)
    before = {
        name: (t.clone(), t._version, t.stride(), t.untyped_storage().nbytes(), _storage(t).clone())
        for name, t in inputs.tensors.items()
    }
    subject.call(inputs)
    for name, tensor in inputs.tensors.items():
        values, version, strides, size, memory = before[name]
        if not torch.equal(tensor, values):
            raise Violation(f"{name} was changed in place")
        if tensor._version != version:
            raise Violation(f"{name} was written to in place (and put back)")
        if tensor.stride() != strides or tensor.untyped_storage().nbytes() != size:
            raise Violation(f"{name} was resized or restrided in place")
        if not torch.equal(_storage(tensor), memory):
            raise Violation(f"memory around {name} was written to")


def _storage(tensor: Tensor) -> Tensor:
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return flat.set_(tensor.untyped_storage())


@register(
    "state-output-own-memory",
    "state",
    reason="an output that shares memory with an input, or with itself, changes under the caller",
    source=PURE,
    cases=lambda plan: [
        *bases(6, 24, 60, n_query=(1, 4, 17), n_key=("same", 1))(plan),
        *(
            plan.fit(Case(batch=b, n_query=q, n_key=k, size=s, value_size=s, scale=scale))
            for b, q, k, s, scale in (
                (1, 1, 1, 1, "default"), (2, 1, 1, 8, "default"), (1, 4, 1, 8, "default"),
                (1, 3, 5, 8, "zero"), (2, 8, 8, 8, "one"),
            )
            if scale == "default" or "scale" not in plan.refused
        ),
    ],
    script="""got = {call}
owners = [x.untyped_storage().data_ptr() for x in (q, k, v)]
print(got.untyped_storage().data_ptr() in owners)  # expected False
assert got.untyped_storage().data_ptr() not in owners""",
)  # fmt: skip
def output_own_memory(subject: Subject, case: Case) -> None:
    """Compare storages, and look for elements of the output that share one place."""
    inputs = subject.build(case)
    output = subject.call(inputs).output
    for name, tensor in inputs.tensors.items():
        if output.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
            raise Violation(f"the output shares memory with {name}")
    sizes = zip(output.shape, output.stride(), strict=True)
    if any(size > 1 and stride == 0 for size, stride in sizes):
        raise Violation("elements of the output share memory: it is an expanded view")


@register(
    "state-calls-independent",
    "state",
    reason="buffers and caches kept between calls give one call the answer of another",
    source="caches keyed by shape alone; " + PURE,
    cases=lambda plan: [
        *bases(3, 14, 40)(plan),
        *(
            replace(case, grad=True)
            for case in bases(1, 5, 15, n_query=(4, 17))(plan)
            if "gradients" not in plan.refused
        ),
    ],
    script="""first = {call}.clone()
attention(q + 1, k - 1, 2 * v)
attention(k, k, v)
again = {call}
print((first - again).abs().max())  # expected 0
assert (first - again).abs().max() < 1e-3""",
)
def calls_independent(subject: Subject, case: Case) -> None:
    """Call, call with others, call again: with other numbers, masks, scales, flags, shapes."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    first = subject.call(inputs).output
    kept = first.detach().clone()
    others = [
        replace(case, seed=case.seed + 1),
        replace(case, mask="none", causal=not case.causal).legal(),
        replace(case, mask="bool", causal=False, pattern="random", seed=case.seed + 2).legal(),
        replace(case, mask="float", causal=False, pattern="random").legal(),
        replace(case, scale="given"),
        replace(case, n_query=case.n_query + 1, seed=case.seed + 3),
        replace(case, n_key=case.n_key + 3),
        replace(case, batch=case.batch + 1, content="large"),
        replace(case, kv_heads=case.kv_heads + 1, value_size=case.size + 1),
        *(replace(case, dtype=dtype) for dtype in subject.dtypes if dtype != case.dtype),
        replace(case, seed=case.seed + 4, mask="none", causal=False).legal(),
    ]
    for other in others:
        call = subject.build(other)
        try:
            wanted = expect(call, subject.rules)["output"]
            compare(subject.call(call).output, wanted, "output of a later call", call)
        except Refused:
            continue
    if not torch.equal(first.detach(), kept) and not first.isnan().any():
        raise Violation("a later call changes the output of an earlier one: its memory is reused")
    _overwrite(first)
    for number in range(3):
        again = subject.call(subject.build(case)).output
        if not identical(kept, again, expected):
            raise Violation(
                f"the same input gives another output after other calls (repetition {number + 1})"
            )


@register(
    "state-same-tensors-new-numbers",
    "state",
    reason="a cache keyed by a tensor's identity or address misses that its numbers changed",
    source="caches keyed by id() or data_ptr() of a mask or of a key",
    cases=bases(3, 12, 40, mask=("none", "bool", "float"), n_query=(4, 17)),
    script="""{call}
q.mul_(2); k.add_(1); v.neg_()
error = {call} - attention(q.clone(), k.clone(), v.clone(){flags})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def same_tensors_new_numbers(subject: Subject, case: Case) -> None:
    """Call, overwrite the inputs in place, call with the same tensor objects."""
    inputs = subject.build(case)
    subject.call(inputs)
    other = subject.build(replace(case, seed=case.seed + 77))
    for name, tensor in inputs.tensors.items():
        tensor.copy_(other.tensors[name])
    got = subject.call(inputs).output
    compare(got, expect(other, subject.rules)["output"], "output", inputs)
    # New tensors in old memory, as an allocator gives them: same address, shape and version.
    last = subject.build(replace(case, seed=case.seed + 78))
    moved: dict[str, Any] = {}
    for name, tensor in inputs.tensors.items():
        tensor.copy_(last.tensors[name])
        moved["mask" if name == "attn_mask" else name] = _same_memory(tensor)
    inputs = replace(inputs, **moved)
    compare(subject.call(inputs).output, expect(last, subject.rules)["output"], "output", inputs)


def _overwrite(output: Tensor) -> None:
    """Write into an output: it is the caller's own, and no later call may see it."""
    if not output.requires_grad:
        with suppress(RuntimeError):  # an expanded view, which another property judges
            output.fill_(7.0)


def _same_memory(tensor: Tensor) -> Tensor:
    """Return a new tensor, never written to, that lies where another does."""
    new = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return new.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
    )


@register(
    "state-deterministic",
    "state",
    reason="the same call twice gives the same output",
    source="https://docs.pytorch.org/docs/stable/notes/randomness.html",
    cases=bases(3, 14, 40, n_query=(4, 17, 130)),
    script="""first = {call}
print([(first - {call}).abs().max().item() for _ in range(5)])  # expected zeros
assert all((first - {call}).abs().max() < 1e-4 for _ in range(20))""",
)
def deterministic(subject: Subject, case: Case) -> None:
    """Call twelve times."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    first = subject.call(inputs).output.detach().clone()
    for _ in range(11):
        output = subject.call(inputs).output
        if not identical(first, output, expected):
            raise Violation("the same call gives different outputs")
        _overwrite(output)


@register(
    "state-globals",
    "state",
    reason="a call must not reseed, nor change default dtype, grad mode or precision flags",
    source="https://docs.pytorch.org/docs/stable/notes/randomness.html",
    cases=bases(2, 8, 20, grad=(False,)),
    script="""torch.manual_seed(987654)
before = torch.get_rng_state()
{call}
print(torch.equal(before, torch.get_rng_state()))  # expected True
assert torch.equal(before, torch.get_rng_state())""",
)
def globals_untouched(subject: Subject, case: Case) -> None:
    """Compare the global state before and after a call without dropout."""
    inputs = subject.build(case)
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    torch.manual_seed(987_654)  # states that no implementation would set by itself
    random.seed(987_654)
    np.random.seed(987_654)
    try:
        before = _global_state()
        subject.call(inputs)
        after = _global_state()
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
    changed = [name for name in before if not _equal(before[name], after[name])]
    if changed:
        raise Violation(f"the call changed {', '.join(changed)}")


def _global_state() -> dict[str, Any]:
    return {
        "the random state": torch.get_rng_state(),
        "Python's random state": random.getstate(),
        "NumPy's random state": str(np.random.get_state(legacy=False)),
        "the default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the number of threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
    }


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
