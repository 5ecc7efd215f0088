"""Masks cut out of wider ones, and masks of the lowest number there is."""

from __future__ import annotations

import torch

from attncheck.conformance.bases import designed
from attncheck.conformance.case import Case
from attncheck.conformance.examine import agrees, check_form
from attncheck.conformance.kinds import LOOKALIKES
from attncheck.conformance.oracle import attend
from attncheck.conformance.registry import register
from attncheck.conformance.subject import Subject, Violation

register(
    "mask-slice",
    "mask",
    reason="a mask cut out of a wider or longer one has rows further apart than it has keys",
    source="GPT-2 keeps one causal mask and cuts [:, :, :n_query, :n_key] out of it; no report",
    cases=designed(
        12, 40, 100, mask=("bool", "float"), mask_shape=("qk", "qk", "hqk", "11qk", "b1qk", "bhqk"),
        mask_layout=("offset", "later rows", "every second"), rank=(4, 4, 3),
        pattern=("random", "padding", "empty rows", "lower", "distance"), batch=(1, 2),
        heads=((1, 1), (2, 1), (1, 2)), n_query=(2, 5, 17, 33), n_key=("same", 7, 18, 34),
        grad=(False, True),
    ),
)(agrees)  # fmt: skip


register(
    "mask-looks-causal",
    "mask",
    reason="a mask that is causal but for one position is no causal mask, whatever its corners say",
    source="code that drops masks which look causal: masking_utils of transformers",
    cases=designed(
        6, 24, 60, mask=("bool", "float"), pattern=LOOKALIKES, mask_shape=("qk", "11qk", "bhqk"),
        batch=(1, 2), heads=((1, 1), (2, 1), (1, 2)), n_query=(5, 8, 17, 33, 65, 130),
        n_key=("same",), grad=(False, True),
    ),
)(agrees)  # fmt: skip


@register(
    "mask-lowest-rows",
    "mask",
    reason="a row of the dtype's lowest number is not hidden: it gives an average of what it sees",
    source="https://github.com/pytorch/pytorch/issues/110213; models mask with finfo.min",
    cases=designed(
        8, 36, 90, mask=("float",), pattern=("all lowest", "lowest and hidden"),
        mask_shape=("qk", "q1", "b1q1"),
        batch=(1, 2), heads=((2, 1),), n_query=(1, 4, 33), n_key=("same", 5, 7, 33, 40, 513, 1030),
        dtype=("float32", "float64", "bfloat16"),
    ),
    script="""v = v.abs() + 1
got = {call}
print(got.min(), got.max(), v.max())  # finite, and no larger than the largest value
assert got.isfinite().all() and got.max() <= v.max() + 0.1""",
)  # fmt: skip
def lowest_rows(subject: Subject, case: Case) -> None:
    """Look whether each row stays between the values that it sees; nothing seen gives zeros.

    Which average it is, is left open: scores and the logarithms of sums are lost in rounding
    beside such a number, so splits of keys may count alike that hold unlike numbers of keys.
    """
    inputs = subject.build(case)
    result = subject.call(inputs)
    check_form(result, inputs)
    _, weights, _ = attend(inputs, torch.float64, subject.rules)
    seen = (weights > 0).unsqueeze(-1)  # all that is not hidden weighs alike here
    values = inputs.value.double()
    if case.ratio > 1:
        values = values.repeat_interleave(case.ratio, -3)
    values = values.unsqueeze(-3)
    empty = ~seen.any(-2)
    high = torch.where(seen, values, -torch.inf).amax(-2).masked_fill(empty, 0)
    low = torch.where(seen, values, torch.inf).amin(-2).masked_fill(empty, 0)
    slack = 8 * torch.finfo(inputs.query.dtype).eps * inputs.value.double().abs().amax()
    got = result.output.detach().double()
    outside = ~((got <= high + slack) & (got >= low - slack))
    if bool(outside.any()):
        raise Violation(
            f"{int(outside.sum())} of {outside.numel()} outputs lie outside the values that a row "
            "of lowest numbers sees",
            inputs=inputs,
            got=got,
        )
