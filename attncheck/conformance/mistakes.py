"""Known mistakes: what an implementation that makes one of them returns, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from attncheck.conformance.case import Inputs
from attncheck.conformance.oracle import Rules, attend, scores_of, softmax_of

__all__ = ["MISTAKES", "given_scale"]

Mistake = Callable[[Inputs, Rules], Tensor]

BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def _with_scale(factor: Callable[[Inputs], float]) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        flags = {**inputs.flags, "scale": factor(inputs)}
        return attend(replace(inputs, flags=flags), torch.float64, rules)[0]

    return mistake


def given_scale(inputs: Inputs) -> float:
    """Return the scale of a call, given or default."""
    scale = inputs.flags.get("scale")
    return inputs.query.shape[-1] ** -0.5 if scale is None else float(scale)


def _flagged(**flags: object) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        kept = {k: v for k, v in {**inputs.flags, **flags}.items() if v is not None}
        return attend(replace(inputs, flags=kept), torch.float64, rules)[0]

    return mistake


def _masked(change: Callable[[Tensor], Tensor | None]) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        if inputs.mask is None:
            raise ValueError("no mask")
        changed = replace(inputs, mask=change(inputs.mask))
        return attend(changed, torch.float64, rules)[0]

    return mistake


def _fill(value: float | None) -> Mistake:
    """Hide with a finite number: a row without visible keys is uniform; None for the mean."""

    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        scores, values = scores_of(inputs, torch.float64, rules)
        low = -1e30 if value is None else value
        return torch.softmax(scores.clamp_min(low), -1) @ values

    return mistake


def _causal_shift(shift: Callable[[int, int], int]) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        if not inputs.flags.get("is_causal"):
            raise ValueError("not causal")
        n_query, n_key = inputs.query.shape[-2], inputs.key.shape[-2]
        free = replace(inputs, flags={**inputs.flags, "is_causal": False})
        scores, values = scores_of(free, torch.float64, rules)
        distance = torch.arange(n_key)[None, :] - torch.arange(n_query)[:, None]
        hidden = distance > shift(n_query, n_key)
        return softmax_of(scores.masked_fill(hidden, -torch.inf)) @ values

    return mistake


def _heads(index: Callable[[int, int], list[int]]) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        heads, kv = inputs.query.shape[-3], inputs.key.shape[-3]
        order = torch.tensor(index(heads, kv))
        flags = {k: v for k, v in inputs.flags.items() if k != "enable_gqa"}
        key, value = (x.index_select(-3, order) for x in (inputs.key, inputs.value))
        changed = replace(inputs, key=key, value=value, flags=flags)
        return attend(changed, torch.float64, rules)[0]

    return mistake


def _keys(keep: Callable[[int, int], slice]) -> Mistake:
    """Leave out some keys."""

    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        scores, values = scores_of(inputs, torch.float64, rules)
        kept = keep(inputs.query.shape[-2], inputs.key.shape[-2])
        return softmax_of(scores[..., kept]) @ values[..., kept, :]

    return mistake


def _normalised(over: Callable[[Tensor], Tensor]) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        scores, values = scores_of(inputs, torch.float64, rules)
        return over(scores) @ values

    return mistake


def _after_softmax(inputs: Inputs, rules: Rules) -> Tensor:
    free = replace(inputs, mask=None, flags={**inputs.flags, "is_causal": False})
    scores, values = scores_of(free, torch.float64, rules)
    hidden = scores_of(inputs, torch.float64, rules)[0] == -torch.inf
    return softmax_of(scores).masked_fill(hidden, 0) @ values


def _bias_scaled(inputs: Inputs, rules: Rules) -> Tensor:
    if inputs.mask is None or inputs.mask.dtype == torch.bool:
        raise ValueError("no float mask")
    return attend(
        replace(inputs, mask=inputs.mask.double() * given_scale(inputs)), torch.float64, rules
    )[0]


def _wrap(change: Callable[[Inputs], Inputs]) -> Mistake:
    return lambda inputs, rules: attend(change(inputs), torch.float64, rules)[0]


def _half(dtype: torch.dtype) -> Mistake:
    def mistake(inputs: Inputs, rules: Rules) -> Tensor:
        if torch.finfo(dtype).eps <= torch.finfo(inputs.query.dtype).eps:
            raise ValueError("no narrower")
        rounded = replace(
            inputs,
            query=inputs.query.to(dtype),
            key=inputs.key.to(dtype),
            value=inputs.value.to(dtype),
        )
        return attend(rounded, torch.float64, rules)[0]

    return mistake


def _first_only(axis: int) -> Callable[[Tensor], Tensor]:
    def change(mask: Tensor) -> Tensor:
        return mask.narrow(axis, 0, 1)

    return change


def _hidden_then_scaled(inputs: Inputs, rules: Rules) -> Tensor:
    scale = given_scale(inputs)
    if scale > 0:
        raise ValueError("-inf times a positive scale is -inf")
    unscaled = {**inputs.flags, "scale": 1.0}
    scores, values = scores_of(replace(inputs, flags=unscaled), torch.float64, rules)
    return torch.softmax(scores * scale, -1) @ values


MISTAKES: Final[dict[str, Mistake]] = {
    "-inf times the scale: keys are hidden before the scores are scaled": _hidden_then_scaled,
    "no scale at all (scores are not divided by sqrt of the head size)": _with_scale(lambda i: 1.0),
    "scale = 1/d instead of 1/sqrt(d)": _with_scale(lambda i: 1 / i.query.shape[-1]),
    "the scale applied twice": _with_scale(lambda i: given_scale(i) ** 2),
    "scale = sqrt(d)": _with_scale(lambda i: i.query.shape[-1] ** 0.5),
    "the scale of the value's head size": _with_scale(lambda i: i.value.shape[-1] ** -0.5),
    "a given scale ignored (the default is used)": _flagged(scale=None),
    "the given scale on top of the default": _with_scale(
        lambda i: given_scale(i) * i.query.shape[-1] ** -0.5
    ),
    "the square root of the given scale": _with_scale(lambda i: abs(given_scale(i)) ** 0.5),
    "the absolute value of the scale": _with_scale(lambda i: abs(given_scale(i))),
    "the scale of a head size padded to 8": _with_scale(
        lambda i: (-(-i.query.shape[-1] // 8) * 8) ** -0.5
    ),
    "the scale of a head size padded to a power of two": _with_scale(
        lambda i: 2 ** (-(((i.query.shape[-1] - 1).bit_length()) / 2))
    ),
    "log2(e) missing or doubled in an exp2 softmax": _with_scale(
        lambda i: given_scale(i) / 0.6931471806
    ),
    "is_causal ignored": _flagged(is_causal=None),
    "bottom-right causal alignment": _causal_shift(lambda q, k: k - q),
    "a causal mask that hides the diagonal": _causal_shift(lambda q, k: -1),
    "a causal mask that shows one future key": _causal_shift(lambda q, k: 1),
    "the mask ignored": _masked(lambda m: None),
    "the mask inverted (True hides)": _masked(lambda m: ~m if m.dtype == torch.bool else -m),
    "a boolean mask added as 0 and 1": _masked(lambda m: m.double()),
    "a float mask read as boolean (nonzero takes part)": _masked(lambda m: m != 0),
    "a float mask read as boolean (zero takes part)": _masked(lambda m: m == 0),
    "a float mask applied as hidden or not, its numbers ignored": _masked(lambda m: m > -torch.inf),
    "a float mask scaled with the scores": _bias_scaled,
    "the mask's first query row for all queries": _masked(_first_only(-2)),
    "the mask's first key column for all keys": _masked(_first_only(-1)),
    "the mask's first head for all heads": _masked(_first_only(-3)),
    "the mask's first batch for all batches": _masked(_first_only(-4)),
    "the mask transposed": _masked(lambda m: m.mT),
    "hidden weights set to zero after the softmax, without renormalising": _after_softmax,
    "hidden keys filled with a finite number, so that rows without keys are means": _fill(None),
    "hidden keys filled with -1e4, not -inf": _fill(-1e4),
    "hidden keys filled with -1e9, not -inf": _fill(-1e9),
    "repeat instead of repeat_interleave for grouped heads": _heads(
        lambda h, kv: [i % kv for i in range(h)]
    ),
    "the first key-value head for all query heads": _heads(lambda h, kv: [0] * h),
    "grouped heads in reverse": _heads(lambda h, kv: [kv - 1 - i * kv // h for i in range(h)]),
    "softmax over queries instead of keys": _normalised(lambda s: torch.softmax(s, -2)),
    "softmax over heads": _normalised(lambda s: torch.softmax(s, -3)),
    "no softmax": _normalised(lambda s: s),
    "one added to the softmax's sum": _normalised(
        lambda s: s.exp() / (1 + s.exp().sum(-1, keepdim=True))
    ),
    "the softmax's sum missing": _normalised(lambda s: (s - s.amax(-1, keepdim=True)).exp()),
    "exp without subtracting the maximum": _normalised(
        lambda s: s.float().exp().double() / s.float().exp().sum(-1, keepdim=True).double()
    ),
    "the first key left out": _keys(lambda q, k: slice(1, None)),
    "the last key left out": _keys(lambda q, k: slice(0, k - 1)),
    "keys cut to the number of queries": _keys(lambda q, k: slice(0, q)),
    **{
        f"the last, partly filled block of {size} keys left out": _keys(
            lambda q, k, size=size: slice(0, k // size * size)  # type: ignore[misc]
        )
        for size in BLOCKS
    },
    "key used as value": _wrap(lambda i: replace(i, value=i.key)),
    "query used as key": _wrap(lambda i: replace(i, key=i.query)),
    "batch 0's keys and values for every batch": _wrap(
        lambda i: replace(i, key=i.key[:1].expand_as(i.key), value=i.value[:1].expand_as(i.value))
    ),
    "an output of zeros": lambda i, r: torch.zeros_like(attend(i, torch.float64, r)[0]),
    "the output's heads reversed": lambda i, r: attend(i, torch.float64, r)[0].flip(-3),
    "arithmetic in bfloat16": _half(torch.bfloat16),
    "arithmetic in float16": _half(torch.float16),
    "arithmetic in float32": _half(torch.float32),
}
"""Known mistakes by name."""
