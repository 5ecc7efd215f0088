"""The conformance battery with inputs on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attncheck import Capabilities, CheckFailure, check_attention
from tests.conformance.implementations import IMPLEMENTATIONS

SELECT = {
    "float32": ["scale", "mask", "causal", "gqa", "softmax", "state"],
    "bfloat16": ["scale", "mask", "causal", "gqa"],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torchs_own_attention_passes(dtype: str, attention_device: torch.device) -> None:
    report = check_attention(
        F.scaled_dot_product_attention,
        capabilities=Capabilities(dtypes=(dtype,)),
        device=attention_device.type,
        effort="quick",
        select=SELECT[dtype],
        raises=False,
    )
    known = set(IMPLEMENTATIONS["torch default"].known)
    assert {one.id for one in report.failures} <= known, str(report)


def twice_the_scale(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    scale = options.pop("scale", None)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return F.scaled_dot_product_attention(query, key, value, scale=2 * scale, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mutant_fails(dtype: str, attention_device: torch.device) -> None:
    with pytest.raises(CheckFailure) as caught:
        check_attention(
            twice_the_scale,
            capabilities=Capabilities(dtypes=(dtype,)),
            device=attention_device.type,
            effort="quick",
            select=["scale"],
        )
    assert {"scale-default", "scale-given"} <= {one.id for one in caught.value.finding.failures}
    compile(caught.value.finding.failures[0].script, "script", "exec")
