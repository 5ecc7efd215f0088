"""``FSMTModel`` sees the future unless it is told not to cache.

With ``use_cache=True``, which its configuration holds by default, transformers 5.23 builds no
causal mask for the decoder, however many tokens it is called with: an evaluation in one pass reads
what it has to predict.
"""

from __future__ import annotations

import torch
import transformers

import attncheck

transformers.logging.set_verbosity_error()


def main() -> None:
    """Check a small random FSMT model, as it is and without its cache."""
    torch.manual_seed(0)
    config = transformers.FSMTConfig(
        langs=["en", "de"],
        src_vocab_size=60,
        tgt_vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    )
    model = transformers.FSMTModel(config).eval()
    source, target = torch.randint(3, 50, (2, 9)), torch.randint(3, 50, (2, 8))
    ids = {"input_ids": source, "decoder_input_ids": target}
    print(f"transformers {transformers.__version__}")
    for use_cache in (True, False):
        model.config.use_cache = use_cache
        try:
            attncheck.assert_no_future_leakage(model, ids)
        except AssertionError as error:
            print(f"\nuse_cache={use_cache}: {error}")
        else:
            print(f"\nuse_cache={use_cache}: sees no future")


if __name__ == "__main__":
    main()
