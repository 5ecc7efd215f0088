"""Capture: what a model's attention is, in the backend that the model runs."""

from attncheck.capture.backends import BackendComparison, LayerDifference, compare_backends
from attncheck.capture.extractor import AttentionExtractor
from attncheck.capture.huggingface import (
    auto_classes,
    extract_huggingface_attention,
    knows_words,
    load_huggingface,
)
from attncheck.capture.profile_dataset import profile_dataset
from attncheck.capture.profile_model import profile_model

__all__ = [
    "AttentionExtractor",
    "BackendComparison",
    "LayerDifference",
    "auto_classes",
    "compare_backends",
    "extract_huggingface_attention",
    "knows_words",
    "load_huggingface",
    "profile_dataset",
    "profile_model",
]
