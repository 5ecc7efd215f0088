"""Every kernel of `scaled_dot_product_attention`, in every way it can be called."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import sdpa_kernel

from attncheck import AttentionExtractor
from tests.devices.kernels import CALLS, KernelCase
from tests.devices.support import assert_rebuilt, exact_weights, inputs

REFUSALS = ("No available kernel", "No viable backend", "not supported", "does not support")


@pytest.mark.filterwarnings("ignore:.*[Ss]dpa:UserWarning", "ignore:.*kernel:UserWarning")
def test_weights_are_those_of_float64(
    kernel_case: KernelCase, attention_device: torch.device
) -> None:
    call = CALLS[kernel_case.call]
    model = call.layer().to(attention_device, kernel_case.dtype)
    x = inputs(attention_device, call.n_query, kernel_case.dtype)
    given = (x,) if call.n_query == call.n_key else (x, inputs(x.device, call.n_key, x.dtype))
    with sdpa_kernel(kernel_case.backends), torch.no_grad():
        try:
            before = model(*given)
        except RuntimeError as error:
            if x.is_cuda and any(word in str(error) for word in REFUSALS):
                pytest.skip(f"{kernel_case}: this torch refuses it without us, too: {error}")
            raise
        with AttentionExtractor(model) as extractor:
            during = model(*given)
    torch.testing.assert_close(during, before, atol=0, rtol=0, equal_nan=True)
    (layer,) = extractor.maps.layers
    expected = exact_weights(
        *model.last, visible=call.visible, bias=_rounded(call.bias, x.dtype), scale=call.scale
    )
    assert_rebuilt(layer.weights, expected)
    assert (layer.backend, layer.status, layer.causal) == ("sdpa", "exact", call.causal)
    assert layer.n_key_value_heads == call.kv_heads
    assert layer.model_device.startswith(attention_device.type)
    seen = layer.visible().expand_as(layer.weights)
    assert torch.equal(seen, expected > 0)


def _rounded(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)
