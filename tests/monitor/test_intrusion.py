"""A watched training is bitwise the training without, in every mode of training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attncheck import HeadMonitor, MonitorWarning
from attncheck.models import TinyTransformer


class Block(nn.Module):
    """Attention with dropout, a running mean, and checkpointing if asked for."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Embedding(32, 16)
        self.qkv = nn.Linear(16, 48)
        self.module = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.out = nn.Linear(16, 32)

    def attend(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            mixed: Tensor = self.module(x, x, x, need_weights=False)[0]
            return mixed
        query, key, value = (
            part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        if self.kind == "by hand":
            weights = F.dropout((query @ key.mT / 8**0.5).softmax(-1), 0.1, self.training)
            mixed = weights @ value
        else:
            dropout = 0.1 if self.training else 0.0
            mixed = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=dropout
            )
        return mixed.transpose(1, 2).flatten(-2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(2):
            if self.kind == "checkpointed":
                x = x + checkpoint(self.attend, x, use_reentrant=False)
            else:
                x = x + self.attend(x)
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.out(F.dropout(x, 0.1, self.training))
        return out


def run(kind: str, watch: Callable[[nn.Module], HeadMonitor] | None) -> list[Tensor]:
    """Train a few steps; return all that training touches."""
    torch.manual_seed(0)
    model: Any = Block("sdpa" if kind in ("autocast", "plain", "compiled") else kind)
    if kind == "compiled":
        model = torch.compile(model, backend="eager")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = watch(model) if watch else None
    if monitor:
        monitor.attach()
    seen: list[Tensor] = []
    for step in range(4):
        ids = torch.arange(24).view(2, 12) + step
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            out = model(ids)
            loss = F.cross_entropy(out.flatten(0, 1).float(), ids.flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        seen += [out.detach().clone(), loss.detach().clone()]
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimiser.step()
    seen += [value.clone() for value in model.state_dict().values()]
    seen.append(torch.get_rng_state())
    if monitor:
        monitor.detach()
        assert monitor.history.steps == [0, 2]
        assert monitor._step == 4
    return seen


@pytest.mark.parametrize(
    "kind", ["plain", "module", "by hand", "checkpointed", "autocast", "compiled"]
)
@pytest.mark.parametrize("probed", [False, True], ids=["own pass", "probe"])
def test_training_is_bitwise_the_same(kind: str, probed: bool) -> None:
    def watch(model: nn.Module) -> HeadMonitor:
        probe = torch.arange(12)[None] if probed else None
        return HeadMonitor(model, every=2, on_alert="raise", probe=probe)

    plain, watched = run(kind, None), run(kind, watch)
    assert len(plain) == len(watched)
    for one, other in zip(plain, watched, strict=True):
        assert torch.equal(one, other)


def test_a_model_compiled_in_place_is_watched_too() -> None:
    model = TinyTransformer().train()
    model.compile(backend="eager")
    before = model._compiled_call_impl
    ids = torch.arange(12)[None]
    with HeadMonitor(model, every=2) as monitor:
        for _ in range(3):
            model(ids).sum().backward()
    assert monitor.history.steps == [0, 2]
    assert model._compiled_call_impl is before


def test_a_model_called_inside_compiled_code_is_said_not_to_be_seen() -> None:
    model = TinyTransformer().train()

    @torch.compile(backend="eager")
    def step(ids: Tensor) -> Tensor:
        out: Tensor = model(ids).sum()
        return out

    monitor = HeadMonitor(model, every=2)
    monitor.attach()
    step(torch.arange(12)[None])
    with pytest.warns(MonitorWarning, match="no forward pass in training mode was seen"):
        monitor.detach()
    assert len(monitor.history) == 0


def test_an_interrupted_pass_is_dropped_and_the_next_one_measured() -> None:
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    norm = model.norms[1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with HeadMonitor(model, every=1) as monitor:
        handle = norm.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        handle.remove()
        monitor.step()
        model(ids)
    assert monitor.history.steps == [1]
    assert len(monitor.history.heads) == 4
    assert torch._C._len_torch_function_stack() == 0


def test_evaluation_is_neither_counted_nor_sampled() -> None:
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    with HeadMonitor(model, every=1) as monitor:
        model(ids)
        with torch.no_grad():
            model(ids)
        model.eval()(ids)
        model.train()(ids)
    assert monitor.history.steps == [0, 1]


def test_the_caller_may_count_the_steps() -> None:
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    with HeadMonitor(model, every=2) as monitor:
        for _ in range(5):
            for _ in range(3):  # gradients accumulate
                model(ids)
            monitor.step()
    assert monitor.history.steps == [0, 2, 4]
    with HeadMonitor(model, every=10, start=95) as monitor:
        for number in range(95, 111):
            model(ids)
            monitor.step(number + 1)
    assert monitor.history.steps == [100, 110]


def test_nothing_stays_behind_also_after_an_exception() -> None:
    model = TinyTransformer().train()
    with pytest.raises(ValueError, match="positions for"), HeadMonitor(model, every=1):
        model(torch.zeros(1, 99, dtype=torch.long))
    assert not model._forward_pre_hooks
    assert not model._forward_hooks
    assert torch._C._len_torch_function_stack() == 0


def test_copies_and_pickles_of_a_watched_model_are_not_watched() -> None:
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    with HeadMonitor(model, every=1) as monitor:
        copied = copy.deepcopy(model)
        loaded = pickle.loads(pickle.dumps(model))
        copied(ids)
        loaded(ids)
        assert len(monitor.history) == 0
        model(ids)
    assert len(monitor.history) == 1


def test_what_cannot_be_measured_is_a_warning_and_training_goes_on() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with HeadMonitor(model, every=1) as monitor:
        with pytest.warns(MonitorWarning, match="no attention was seen"):
            model(torch.ones(1, 4))
        assert model(torch.ones(1, 4)).shape == (1, 4)  # said once
    assert len(monitor.history) == 0


def test_arguments_are_checked() -> None:
    model = TinyTransformer()
    with pytest.raises(TypeError, match="model: is int"):
        HeadMonitor(3)
    with pytest.raises(ValueError, match="every: 0; expected at least 1"):
        HeadMonitor(model, 0)
    with pytest.raises(TypeError, match=r"thresholds: is dict; expected attncheck.monitor.Thr"):
        HeadMonitor(model, thresholds={"dead": 0.1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on_alert: got 'shout'"):
        HeadMonitor(model, on_alert="shout")
    with pytest.raises(ValueError, match="layers: no module fits"):
        HeadMonitor(model, layers="encoder.9")
    with HeadMonitor(model) as monitor:
        model(torch.arange(12)[None])
        with pytest.raises(RuntimeError, match="attached already"):
            monitor.attach()
