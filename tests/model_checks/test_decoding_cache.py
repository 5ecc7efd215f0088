"""The cache of transformers, whichever of its names a model uses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attncheck
from attncheck import CheckFailure, ModelSubject
from attncheck.model_checks.decoding_cache import cache_argument, held_cache, holds_keys

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}


class AveragingConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    model_type = "averaging"


class Averaging(transformers.PreTrainedModel):  # type: ignore[misc]
    """Averages what it has seen; the forward of a subclass names its cache."""

    config_class = AveragingConfig

    def __init__(self, loses: int) -> None:
        super().__init__(AveragingConfig(vocab_size=50))
        self.embedding = nn.Embedding(50, 6)
        self.loses = loses

    def averaged(self, name: str, ids: Tensor, cache: Any) -> dict[str, Any]:
        held = self.embedding(ids)
        seen = held if cache is None else torch.cat([cache.layers[0].keys, held], 1)
        mean = seen.cumsum(1) / torch.arange(1, seen.shape[1] + 1)[:, None]
        layer = SimpleNamespace(keys=seen[:, self.loses :])
        kept = SimpleNamespace(layers=[layer])
        return {"last_hidden_state": mean[:, -held.shape[1] :], name: kept}


class Before(Averaging):
    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = True
    ) -> Any:
        return self.averaged("past_key_values", input_ids, past_key_values)


class Since(Averaging):
    def forward(self, input_ids: Tensor, cache: Any = None, use_cache: bool = True) -> Any:
        return self.averaged("cache", input_ids, cache)


class Both(Averaging):
    """As XLM before 5.24: its ``cache`` is something else."""

    def forward(
        self, input_ids: Tensor, cache: Any = None, past_key_values: Any = None, **_: Any
    ) -> Any:
        assert cache is None
        return self.averaged("past_key_values", input_ids, past_key_values)


@pytest.mark.parametrize("named", [Before, Since, Both])
def test_a_cache_is_followed_under_either_name(named: type[Averaging]) -> None:
    attncheck.assert_cache_consistent(named(loses=0), kind="decoder")
    with pytest.raises(CheckFailure, match="the cache changes the output"):
        attncheck.assert_cache_consistent(named(loses=1), kind="decoder")


def test_a_model_of_transformers_is_followed_under_its_own_name() -> None:
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=4, intermediate_size=48)
    subject = ModelSubject.of(transformers.LlamaModel(config).eval())
    assert subject.kind == "decoder"
    name = cache_argument(subject.parameters)
    assert name is not None
    returned = subject.model(**subject.inputs, use_cache=True)
    cache = held_cache(returned)
    assert cache is not None
    assert cache is returned[name]
    assert holds_keys(cache)
    assert cache.get_seq_length() == subject.length


def test_a_state_without_keys_is_no_key_value_cache() -> None:
    model = transformers.MambaModel(transformers.MambaConfig(**SIZES, state_size=4)).eval()
    with pytest.raises(ValueError, match="step: it"):
        attncheck.assert_cache_consistent(model, kind="decoder")


def test_no_cache_is_none() -> None:
    assert held_cache(None) is None
    assert held_cache((torch.ones(2),)) is None
    assert held_cache({"cache": None, "past_key_values": None}) is None
    assert held_cache(SimpleNamespace(cache=3)) == 3
