"""`HeadMonitor` while a model trains on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attncheck import HeadHistory, HeadMonitor, MonitorWarning, plot_history
from attncheck.models import TinyTransformer


def train(
    device: torch.device, dtype: torch.dtype | None, watch: bool = True, **options: Any
) -> tuple[list[torch.Tensor], HeadMonitor | None]:
    torch.manual_seed(0)
    model = TinyTransformer().to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = HeadMonitor(model, every=2, **options) if watch else None
    if monitor:
        monitor.attach()
    seen = []
    for step in range(5):
        ids = ((torch.arange(48).view(2, 24) * 7 + step) % 32).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen.append(loss.detach())
    if monitor:
        monitor.detach()
    return [*seen, *model.parameters()], monitor


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_watched_training_is_bitwise_the_other(
    dtype: torch.dtype | None, attention_device: torch.device
) -> None:
    """With the one kernel whose gradients are the same each time."""
    with sdpa_kernel(SDPBackend.MATH):
        watched, monitor = train(attention_device, dtype)
        alone, _ = train(attention_device, dtype, watch=False)
    assert all(torch.equal(a, b) for a, b in zip(watched, alone, strict=True))
    assert monitor is not None
    assert monitor.history.steps == [0, 2, 4]


def test_what_it_measures_is_what_the_cpu_measures(
    tmp_path: Path, attention_device: torch.device
) -> None:
    path = tmp_path / "heads.jsonl"
    train(attention_device, None, path=path)
    _, monitor = train(torch.device("cpu"), None)
    assert monitor is not None
    found, expected = HeadHistory.load(path), monitor.history
    for name in ("entropy", "normalized_entropy", "max_logit", "previous_token", "sink_mass"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert plot_history(found)


def test_a_fixed_prompt_and_an_alert(attention_device: torch.device) -> None:
    torch.manual_seed(0)
    model = TinyTransformer().to(attention_device)
    ids = torch.arange(24)[None].to(attention_device)
    with HeadMonitor(model, every=1, probe=ids) as monitor:
        model.train()(ids)
        model.attention[0].get_parameter("query_key_value.weight").data.mul_(100)
        with pytest.warns(MonitorWarning):
            model(ids)
    assert "max_logit" in {alert.kind for alert in monitor.alerts}
