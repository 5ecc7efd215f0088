"""attncheck: test attention.

Capture the attention of any PyTorch model, assert properties of it, name what each head does.
Public names load on first use, so that importing this package, as the pytest plugin does at every
start, imports neither torch nor matplotlib nor hypothesis.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "attncheck.errors": (
        "BaselineError",
        "CaptureError",
        "CheckFailure",
        "HeadAlertError",
        "MonitorWarning",
        "UncheckedWarning",
    ),
    "attncheck.tolerances": ("TOLERANCES", "tolerance_for"),
    "attncheck.attention": ("AttentionMaps", "LayerAttention", "as_attention"),
    "attncheck.patterns": (
        "PATTERNS",
        "classify_heads",
        "create_synthetic_attention",
        "identify_attention_pattern",
        "pattern_scores",
    ),
    "attncheck.metrics": (
        "METRICS",
        "attention_flow",
        "attention_rollout",
        "compute_attention_statistics",
        "head_redundancy",
        "head_similarity",
    ),
    "attncheck.profile": ("HeadProfile",),
    "attncheck.distributed": ("gather_profiles",),
    "attncheck.evaluate": ("profile_attention",),
    "attncheck.capture": (
        "AttentionExtractor",
        "compare_backends",
        "extract_huggingface_attention",
        "profile_dataset",
        "profile_model",
    ),
    "attncheck.monitor": ("HeadHistory", "HeadMonitor"),
    "attncheck.checks": (
        "CHECKS",
        "assert_attention_close",
        "assert_causal",
        "assert_entropy",
        "assert_heads_distinct",
        "assert_mask_respected",
        "assert_pattern",
        "assert_row_stochastic",
        "assert_sink_mass",
        "assert_sliding_window",
    ),
    "attncheck.conformance": ("Capabilities", "check_attention", "parametrize_with_checks"),
    "attncheck.model_checks": (
        "ModelSubject",
        "assert_backends_agree",
        "assert_batch_invariant",
        "assert_cache_consistent",
        "assert_deterministic",
        "assert_dropout_off_in_eval",
        "assert_gradients_flow",
        "assert_no_future_leakage",
        "assert_padding_invariant",
        "assert_permutation_equivariant",
        "assert_position_sensitive",
        "assert_segments_isolated",
        "assert_window_respected",
        "check_model",
        "parametrize_with_model_checks",
    ),
    "attncheck.plot": (
        "plot_attention_heatmap",
        "plot_head_map",
        "plot_heads",
        "plot_history",
        "plot_statistics",
    ),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}
_SUBMODULES = ("models", "strategies")

__all__ = ["__version__", *sorted(_MODULE_OF), *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"attncheck.{name}")
    else:
        raise AttributeError(f"module 'attncheck' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
