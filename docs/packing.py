"""Packed documents that see each other, in models that take the positions which should part them.

Hugging Face decoders read packed documents off ``position_ids`` that start again at 0: the builder
of masks makes them block-diagonal. In transformers 5.23 some models take ``position_ids`` and call
that builder without them. Nothing is raised, and each document reads those before it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

import attncheck

transformers.logging.set_verbosity_error()

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
ROTARY: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": ROTARY,
    "Mistral": ROTARY,
    "GptOss": {**ROTARY, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Falcon": {},
    "OPT": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "BioGpt": {},
}


def main() -> None:
    """Check small random models of several families."""
    print(f"transformers {transformers.__version__}")
    for family, sizes in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **sizes})
        model = getattr(transformers, f"{family}Model")(config).eval()
        try:
            attncheck.assert_segments_isolated(model)
        except AssertionError as error:
            facts = dict(error.finding.facts)  # type: ignore[attr-defined]
            print(f"{family:8} {str(error).splitlines()[0]}; {facts['layer']}")
        else:
            print(f"{family:8} documents are isolated")


if __name__ == "__main__":
    main()
