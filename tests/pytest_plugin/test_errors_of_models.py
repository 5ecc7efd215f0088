"""What a user's model raises while it is watched shows the user's lines, and none that watch it."""

from __future__ import annotations

import pytest

from tests.pytest_plugin.conftest import Run
from tests.pytest_plugin.test_tracebacks import frames

MODEL = """
import pytest, torch
import torch.nn.functional as F
import attncheck
from torch import nn

class Inner(nn.Module):
    def forward(self, x):
        return x @ torch.ones(3, 3)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)

def model_of(fail):
    class Model(nn.Module):
        def forward(self, x):
            return fail(x)

    return Model()
"""

ENTRIES = """
X = torch.ones(1, 4, 8)

def test_get(attention_extractor):
    attention_extractor(Broken()).get_attention(X)

def test_with():
    model = Broken()
    with attncheck.AttentionExtractor(model):
        model(X)

def test_profile():
    attncheck.profile_model(Broken(), X)

def test_dataset():
    attncheck.profile_dataset(Broken(), [{"x": X}])

def test_monitor():
    model = Broken().train()
    with attncheck.HeadMonitor(model, every=1):
        model(X)
"""

WAYS = """
class Function(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x[9]

class Slotted(nn.Module):
    def forward(self, x):
        return self.nothing

def raising(x):
    raise ValueError("mine")

def followed(x):
    weights = (x @ x.mT).softmax(-1)
    return weights @ x[:, :2]

def scores(x):
    return (x @ x.mT) + torch.ones(3)

WAYS = {
    "embedding": lambda x: F.embedding(torch.tensor([7]), torch.ones(2, 2)),
    "creation": lambda x: torch.zeros(-1),
    "product": lambda x: x @ torch.ones(3, 3),
    "linear": lambda x: F.linear(x, torch.ones(2, 3)),
    "module": nn.Linear(3, 3),
    "sum": lambda x: x + torch.ones(3),
    "join": lambda x: torch.cat([x, x[..., :2]], dim=1),
    "index": lambda x: x[5],
    "softmax": lambda x: x.softmax(9),
    "reduction": lambda x: x.sum(9),
    "repetition": lambda x: x.repeat(1),
    "view": lambda x: x.view(3),
    "bilinear": lambda x: F.bilinear(x, x, torch.ones(2, 3, 3)),
    "list": lambda x: x.tolist(1),
    "sdpa": lambda x: F.scaled_dot_product_attention(x, x[..., :2], x),
    "multihead": lambda x: nn.MultiheadAttention(8, 2)(x, x[..., :2], x),
    "encoder": nn.TransformerEncoderLayer(6, 2, 8),
    "function": Function.apply,
    "attribute": Slotted(),
    "python": lambda x: {}["key"],
    "raise": raising,
    "weights": followed,
    "scores": scores,
}

@pytest.mark.parametrize("way", WAYS)
def test_way(attention_extractor, way):
    attention_extractor(model_of(WAYS[way])).get_attention(torch.ones(1, 4, 8))

@pytest.mark.parametrize("way", ["module", "encoder"])
def test_way_without_a_line_of_the_user(attention_extractor, way):
    attention_extractor(WAYS[way]).get_attention(torch.ones(1, 4, 8))

def test_missing(attention_extractor):
    attention_extractor(Broken()).get_attention()
"""

BUGS = """
import attncheck.capture.shared as shared
import attncheck.capture.follow.softmax as softmax

def own(module, code):
    exec(code, vars(module))

def test_own_line(attention_extractor, monkeypatch):
    monkeypatch.setattr(shared, "is_plain", None)
    attention_extractor(Broken()).get_attention(torch.ones(1, 4, 3))

def test_own_call_of_torch(attention_extractor, monkeypatch):
    monkeypatch.setattr(shared, "is_plain", shared.is_plain)
    own(shared, "def is_plain(kind): return torch.ones(3, 3) @ torch.ones(4, 4)")
    attention_extractor(Broken()).get_attention(torch.ones(1, 4, 3))

def test_own_call_in_place_of_torch(attention_extractor, monkeypatch):
    monkeypatch.setattr(softmax, "name_of", softmax.name_of)
    own(softmax, "def name_of(function): return Tensor.view(Tensor.new_ones(Tensor(), 3), 5)")
    attention_extractor(Broken()).get_attention(torch.ones(1, 4, 3))
"""


@pytest.mark.parametrize("style", ["auto", "long", "short"])
def test_the_lines_of_test_and_model_are_shown_and_no_others(run: Run, style: str) -> None:
    result = run(MODEL + ENTRIES, f"--tb={style}")
    result.assert_outcomes(failed=5)
    assert frames(result) == []
    shown = result.stdout.str()
    assert "torch/nn" not in shown
    for line in ("get_attention(X)", "profile_model(Broken(), X)", "[{"):
        assert shown.count(line) == 1
    for line in ("return self.inner(x)", "return x @ torch.ones(3, 3)"):
        assert len([one for one in result.stdout.lines if one.endswith(line)]) == 5


def test_whatever_the_model_calls_our_lines_are_left_out(run: Run) -> None:
    result = run(MODEL + WAYS, "--tb=short")
    result.assert_outcomes(failed=26)
    assert frames(result) == []
    assert "CaptureError" not in result.stdout.str()


def test_full_trace_shows_everything(run: Run) -> None:
    result = run(MODEL + ENTRIES, "--full-trace", "-k", "test_get")
    assert any("capture/extractor.py:" in line for line in frames(result))


def test_a_bug_of_ours_in_the_middle_of_a_model_shows_where_it_is(run: Run) -> None:
    result = run(MODEL + BUGS, "--tb=short")
    result.assert_outcomes(failed=3)
    shown = result.stdout.str().split("_ test_own")
    assert len(shown) == 4
    assert all("attncheck/capture/shared.py:" in one for one in shown[1:3])
    assert "attncheck/capture/follow/softmax.py:" in shown[3]
