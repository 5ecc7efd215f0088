"""The same monitor inside trainers, and on ranks."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attncheck import HeadHistory, HeadMonitor
from attncheck.models import TinyTransformer


def test_a_transformers_trainer_counts_the_steps(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": torch.arange(12), "labels": torch.arange(12)}] * 24
    monitor = HeadMonitor(model, every=2, path=tmp_path / "heads.jsonl", on_alert="raise")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=data,
        callbacks=[monitor.transformers_callback()],
    )
    trainer.train()
    assert HeadHistory.load(tmp_path / "heads.jsonl").steps == [0, 2]
    assert not model._forward_pre_hooks


def test_a_transformers_callback_counts_as_it_is_told() -> None:
    pytest.importorskip("transformers")
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    monitor = HeadMonitor(model, every=2)
    callback = monitor.transformers_callback()
    state = types.SimpleNamespace(global_step=6)
    callback.on_train_begin(None, state, None, model=model)
    for _ in range(3):
        model(ids)
        model(ids)
        state.global_step += 1
        callback.on_step_end(None, state, None, model=model)
    callback.on_train_end(None, state, None, model=model)
    assert monitor.history.steps == [6, 8]
    assert not model._forward_pre_hooks


def test_a_lightning_callback_counts_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Callback:
        pass

    module = types.ModuleType("pytorch_lightning")
    module.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    monitor = HeadMonitor(model, every=2)
    callback: Any = monitor.lightning_callback()
    assert Callback in type(callback).__mro__
    trainer = types.SimpleNamespace(global_step=3)
    callback.on_train_start(trainer, model)
    for batch in range(6):  # two batches a step
        model(ids)
        trainer.global_step += batch % 2
        callback.on_train_batch_end(trainer, model, None, None, batch)
    callback.on_exception(trainer, model, KeyboardInterrupt())
    assert monitor.history.steps == [4]
    assert not model._forward_pre_hooks


def test_neither_lightning_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncheck.monitor.callbacks.LIGHTNING", ("no_such_lightning",))
    with pytest.raises(ImportError, match="neither lightning nor pytorch_lightning"):
        HeadMonitor(TinyTransformer()).lightning_callback()


def test_a_distributed_model_is_unwrapped_and_watched(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(TinyTransformer().train())
        with HeadMonitor(model, every=2, on_alert="raise") as monitor:
            for _ in range(3):
                model(torch.arange(12)[None]).sum().backward()
        assert monitor.history.steps == [0, 2]
    finally:
        dist.destroy_process_group()


def test_other_ranks_watch_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncheck.monitor.monitor._rank", lambda: 3)
    model, ids = TinyTransformer().train(), torch.arange(12)[None]
    with HeadMonitor(model, path=tmp_path / "heads.jsonl") as monitor:
        assert not model._forward_pre_hooks
        model(ids)
    assert len(monitor.history) == 0
    assert not list(tmp_path.iterdir())
    with HeadMonitor(model, path=tmp_path / "heads.jsonl", ranks="all") as monitor:
        model(ids)
    assert [path.name for path in tmp_path.iterdir()] == ["heads.rank3.jsonl"]


class Grouped(nn.Module):
    """Two query heads share one key; the second of two sequences is padding at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        key = self.key(x).unflatten(-1, (1, 4)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(
            query, key, key, attn_mask=visible, scale=0.7, enable_gqa=True
        )


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_logits_outputs_and_twins_are_what_plain_loops_say(sequences: int) -> None:
    torch.manual_seed(1)
    model = Grouped().train()
    x = torch.randn(3, 6, 8)
    visible = torch.ones(3, 1, 6, 6, dtype=torch.bool).tril()
    visible[1, :, :, 4:] = False
    with HeadMonitor(model, sequences=sequences, on_alert="raise") as monitor:
        out = model(x, visible)
    sample = monitor.history[0]
    with torch.no_grad():
        query = model.query(x).unflatten(-1, (2, 4))
        key = model.key(x)
        largest, squares, rows = [-1e9, -1e9], [0.0, 0.0], 0
        apart = {(a, b): 0.0 for a in "01u" for b in "01u"}
        for b in range(min(sequences, 3)):
            for i in range(6):
                seen = [j for j in range(6) if visible[b, 0, i, j]]
                if not visible[b, 0, :, i].any():
                    continue  # padding
                rows += 1
                shares = {"u": torch.full((len(seen),), 1 / len(seen))}
                for h in range(2):
                    scores = [0.7 * float(query[b, i, h] @ key[b, j]) for j in seen]
                    largest[h] = max(largest[h], *scores)
                    squares[h] += float(out[b, h, i].square().mean())
                    shares[str(h)] = torch.tensor(scores).softmax(0)
                for a, c in apart:
                    apart[a, c] += float((shares[a] - shares[c]).square().sum())
    assert sample.measures["max_logit"] == pytest.approx(largest, rel=1e-5)
    assert sample.measures["output_rms"] == pytest.approx(
        [(total / rows) ** 0.5 for total in squares], rel=1e-5
    )
    between = apart["0", "1"] ** 0.5 / (apart["0", "u"] * apart["1", "u"]) ** 0.25
    assert sample.measures["twin_distance"] == pytest.approx([between] * 2, rel=1e-4)
    assert sample.twins == ("L0H1", "L0H0")
