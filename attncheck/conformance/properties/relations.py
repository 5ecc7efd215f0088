"""Relations between two calls: permutations, and independence of batches and heads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attncheck.conformance.bases import bases
from attncheck.conformance.case import Case, Inputs
from attncheck.conformance.examine import compare
from attncheck.conformance.numerics import Expected, expect
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

FREE = {"causal": (False,)}


def close(got: Tensor, want: Tensor, like: Expected, message: str) -> None:
    """Raise with a message if two outputs differ by more than both together may be off."""
    allowed = 2 * like.allowed.expand_as(like.value)
    try:
        compare(got, Expected(want.detach().cpu().double(), allowed.cpu()), "output")
    except Violation as violation:
        violation.message = message
        raise


@register(
    "relation-permute-keys",
    "relation",
    reason="attention is a sum over keys: their order, moved with values and mask, is nothing",
    source="Lee et al. 2019 (Set Transformer), property 1",
    cases=bases(6, 30, 100, **FREE, n_key=(5, 17, 33, 65, 130)),
    script="""p = torch.randperm(k.shape[-2])
m = mask.expand(*mask.shape[:-1], len(p))[..., p] if "attn_mask" in "{flags}" else None
error = attention(q, k[..., p, :], v[..., p, :], attn_mask=m{more}) - {call}
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def permute_keys(subject: Subject, case: Case) -> None:
    """Reverse and rotate keys, values and mask columns together."""
    inputs = subject.build(case)
    order = torch.roll(torch.arange(case.n_key).flip(0), 1).to(inputs.query.device)
    mask = inputs.mask
    if mask is not None and mask.shape[-1] > 1:
        mask = mask[..., order]
    moved = replace(
        inputs, key=inputs.key[..., order, :], value=inputs.value[..., order, :], mask=mask
    )
    expected = expect(inputs, subject.rules)["output"]
    close(
        subject.call(moved).output,
        expected.value,
        expected,
        "the order of the keys changes the output",
    )


@register(
    "relation-permute-queries",
    "relation",
    reason="each query is answered on its own: permuted queries give permuted outputs",
    source="Lee et al. 2019 (Set Transformer), property 1",
    cases=bases(6, 30, 100, **FREE, n_query=(5, 17, 33, 65, 130)),
    script="""p = torch.arange(q.shape[-2]).flip(0)
m = mask.expand(*mask.shape[:-2], len(p), -1)[..., p, :] if "attn_mask" in "{flags}" else None
error = attention(q[..., p, :], k, v, attn_mask=m{more}) - {call}[..., p, :]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def permute_queries(subject: Subject, case: Case) -> None:
    """Reverse the queries and the rows of the mask."""
    inputs = subject.build(case)
    mask = inputs.mask
    if mask is not None and mask.shape[-2] > 1:
        mask = mask.flip(-2)
    got = subject.call(replace(inputs, query=inputs.query.flip(-2), mask=mask)).output
    expected = expect(inputs, subject.rules)["output"]
    close(got.flip(-2), expected.value, expected, "the order of the queries changes their outputs")


def _others_unchanged(
    subject: Subject, inputs: Inputs, axis: int, index: int, what: str, n_heads: int
) -> None:
    """Change one batch or head to wild numbers; all others must stay.

    A batch is filled with NaN too; heads may have met in an exact projection, where 0 * NaN counts.
    """
    expected = expect(inputs, subject.rules)["output"]
    for wild in (1000.0, torch.nan) if axis == -4 else (20.0,):
        query, key, value = (
            x.clone(memory_format=torch.contiguous_format)
            for x in (inputs.query, inputs.key, inputs.value)
        )
        group = n_heads // key.shape[axis] if axis == -3 else 1
        query.narrow(axis, index * group, group).fill_(wild)
        key.narrow(axis, index, 1).fill_(wild)
        value.narrow(axis, index, 1).fill_(wild)
        got = subject.call(replace(inputs, query=query, key=key, value=value)).output
        keep = torch.ones(got.shape[axis], dtype=torch.bool)
        keep[index * group : (index + 1) * group] = False
        kept = keep.nonzero().flatten()
        allowed = expected.allowed.expand_as(expected.value).index_select(axis, kept.to(got.device))
        rest = Expected(expected.value.index_select(axis, kept.to(got.device)), allowed)
        try:
            compare(got.index_select(axis, kept.to(got.device)), rest, "output")
        except Violation as violation:
            violation.message = f"{what} {index} filled with {wild:g} changes another {what}"
            raise


@register(
    "relation-batch-independent",
    "relation",
    reason="one sequence of a batch must not touch another: not its numbers, not its NaN",
    source="https://github.com/Dao-AILab/flash-attention/issues/47; batch invariance",
    cases=bases(4, 24, 80, batch=(2, 3, 5, 17)),
    script="""q2, k2, v2 = q.clone(), k.clone(), v.clone()
for x in (q2, k2, v2): x[0] = 1000.0
error = ({call} - attention(q2, k2, v2{flags}))[1:]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def batch_independent(subject: Subject, case: Case) -> None:
    """Fill one batch with wild numbers, then NaN."""
    inputs = subject.build(case)
    if case.batch > 1:
        _others_unchanged(subject, inputs, -4, case.seed % case.batch, "batch", case.heads)


@register(
    "relation-head-independent",
    "relation",
    reason="heads are computed apart: one must not touch another",
    source="Vaswani et al. 2017, 3.2.2",
    cases=bases(4, 24, 80, heads=((2, 1), (3, 1), (5, 1), (2, 2), (3, 3))),
    script="""n = q.shape[-3] // k.shape[-3]
q2, k2, v2 = q.clone(), k.clone(), v.clone()
q2[..., :n, :, :] = k2[..., 0, :, :] = v2[..., 0, :, :] = 20.0
error = ({call} - attention(q2, k2, v2{flags}))[..., n:, :, :]
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def head_independent(subject: Subject, case: Case) -> None:
    """Fill one key-value head, with its query heads, with wild numbers."""
    inputs = subject.build(case)
    if case.kv_heads > 1:
        _others_unchanged(subject, inputs, -3, case.seed % case.kv_heads, "head", case.heads)


@register(
    "relation-single-batch",
    "relation",
    reason="a sequence alone gives what it gives in a batch",
    source="Thinking Machines 2025, Defeating Nondeterminism in LLM Inference",
    cases=bases(4, 16, 60, batch=(3, 4), mask=("none", "bool"), mask_shape=("qk", "1k")),
    script="""error = {call}[-1:] - attention(q[-1:], k[-1:], v[-1:]{flags})
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)
def single_batch(subject: Subject, case: Case) -> None:
    """Call with the last sequence only."""
    inputs = subject.build(case)
    expected = expect(inputs, subject.rules)["output"]
    alone = replace(inputs, query=inputs.query[-1:], key=inputs.key[-1:], value=inputs.value[-1:])
    allowed = expected.allowed.expand_as(expected.value)[-1:]
    close(
        subject.call(alone).output,
        expected.value[-1:],
        Expected(expected.value[-1:], allowed),
        "a sequence alone gives another output than in its batch",
    )


@register(
    "relation-head-order",
    "relation",
    reason="heads in another order give outputs in that order",
    source="Vaswani et al. 2017, 3.2.2",
    cases=bases(4, 16, 50, heads=((3, 1), (4, 1), (3, 2)), mask=("none", "bool"),
                mask_shape=("qk", "b11k")),
    script="""n = q.shape[-3] // k.shape[-3]
q2 = q.unflatten(-3, (-1, n)).flip(-4).flatten(-4, -3)
error = attention(q2, k.flip(-3), v.flip(-3){flags}) - {call}.unflatten(
    -3, (-1, n)).flip(-4).flatten(-4, -3)
print(error.abs().max())  # expected about 0
assert error.abs().max() < 1e-2""",
)  # fmt: skip
def head_order(subject: Subject, case: Case) -> None:
    """Reverse the key-value heads and the groups of query heads with them."""
    inputs = subject.build(case)

    def turn(x: Tensor) -> Tensor:
        grouped = x.reshape(*x.shape[:-3], -1, case.ratio, *x.shape[-2:])
        return grouped.flip(-4).flatten(-4, -3)

    turned = replace(
        inputs, query=turn(inputs.query), key=inputs.key.flip(-3), value=inputs.value.flip(-3)
    )
    expected = expect(inputs, subject.rules)["output"]
    close(turn(subject.call(turned).output), expected.value, expected,
          "the order of the heads changes their outputs")  # fmt: skip
