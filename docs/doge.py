"""A real bug that only the user's own backend shows: ``DogeForCausalLM`` and its mask.

In transformers 5.17 the model attends to future tokens under sdpa, its default backend, and to none
under eager. Tools that switch a model to eager before they look call it healthy. Run this under
both versions:

    pip install transformers==5.17.0 attncheck && python doge.py
    pip install transformers==5.23.0 && python doge.py
"""

from __future__ import annotations

import torch
import transformers

from attncheck import AttentionExtractor, assert_causal, compare_backends

transformers.logging.set_verbosity_error()


def main() -> None:
    """Compare the backends of a small random Doge model, and assert that it is causal."""
    torch.manual_seed(0)
    config = transformers.DogeConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        keep_window_size=8,
    )
    model = transformers.DogeForCausalLM(config).eval()
    ids = torch.randint(3, 100, (1, 12))
    backend = model.config._attn_implementation
    print(f"transformers {transformers.__version__}, default backend {backend}")
    print(compare_backends(model, ids))
    maps = AttentionExtractor(model).get_attention(ids)
    try:
        assert_causal(maps)
    except AssertionError as error:
        print(f"\nassert_causal: {error}")
    else:
        print("\nassert_causal passes")


if __name__ == "__main__":
    main()
