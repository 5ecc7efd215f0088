"""Models whose layers bring their parameters only while they run, as ``device_map`` makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attncheck import AttentionExtractor, CaptureError, HeadProfile, profile_dataset, profile_model
from tests.distributed.models import Decoder, batches


def offloaded(model: nn.Module) -> nn.Module:
    """Put every parameter on the meta device, but for the time that its own module runs."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue

        def away(module: nn.Module, *_: Any, names: tuple[str, ...] = tuple(own)) -> None:
            for name in names:
                setattr(
                    module,
                    name,
                    nn.Parameter(torch.empty_like(own_of(module)[name], device="meta")),
                )

        def here(module: nn.Module, *_: Any, held: dict[str, Tensor] = own) -> None:
            for name, parameter in held.items():
                setattr(module, name, nn.Parameter(parameter.detach().clone()))

        module.register_forward_pre_hook(here)
        module.register_forward_hook(away)
        away(module)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


def own_of(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(recurse=False))


def require_same(found: HeadProfile, want: HeadProfile) -> None:
    assert found.heads() == want.heads()
    for measure in want.measures:
        np.testing.assert_array_equal(found[measure], want[measure], err_msg=measure)


def test_parameters_that_come_and_go_are_measured_where_they_are() -> None:
    batch = batches()[3]
    model = offloaded(Decoder())
    require_same(profile_model(model, **batch), profile_model(Decoder(), **batch))
    assert all(parameter.is_meta for parameter in model.parameters()), "left as it was"
    found = AttentionExtractor(model).get_attention(**batch)
    for one, other in zip(found, AttentionExtractor(Decoder()).get_attention(**batch), strict=True):
        assert torch.equal(one, other)


def test_batches_stay_where_they_are_if_the_first_parameter_is_nowhere() -> None:
    want = profile_dataset(Decoder(), batches(), progress=False)
    require_same(profile_dataset(offloaded(Decoder()), batches(), progress=False), want)


def test_a_model_without_numbers_is_told() -> None:
    with pytest.raises(CaptureError, match="are on the meta device or fake, and hold no numbers"):
        profile_model(Decoder().to("meta"), torch.ones(1, 9, dtype=torch.long, device="meta"))


@pytest.mark.parametrize("way", ["cpu", "disk"])
def test_accelerate(tmp_path: Path, way: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    device = torch.device("cpu")
    offload: dict[str, Callable[[nn.Module], nn.Module]] = {
        "cpu": lambda model: accelerate.cpu_offload(model, execution_device=device),
        "disk": lambda model: accelerate.disk_offload(model, tmp_path, execution_device=device),
    }
    model = offload[way](Decoder())
    require_same(profile_model(model, **batches()[3]), profile_model(Decoder(), **batches()[3]))
