"""Asking a model for its attention may change it: ``FalconModel`` with ``output_attentions=True``.

Under sdpa, the default backend, transformers 5.23 answers that request on a path that leaves the
causal mask out. The maps that come back show it, and so do the hidden states: the model computes
something else because it was asked. A capture asks for nothing.
"""

from __future__ import annotations

import torch
import transformers

from attncheck import AttentionExtractor, as_attention

transformers.logging.set_verbosity_error()


def future_mass(attention: object) -> float:
    """Largest mass that a query puts on later keys."""
    return max(float(weights.triu(1).sum(-1).max()) for weights in as_attention(attention))


def main() -> None:
    """Ask a small random Falcon for its attention, and capture it."""
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.FalconModel(config).eval()
    ids = torch.randint(3, 90, (1, 12))
    with torch.no_grad():
        plain, asked = model(ids), model(ids, output_attentions=True)
    captured = AttentionExtractor(model).get_attention(ids)
    changed = (plain.last_hidden_state - asked.last_hidden_state).abs().max()
    backend = model.config._attn_implementation
    print(f"transformers {transformers.__version__}, default backend {backend}")
    print(f"future mass with output_attentions=True  {future_mass(asked):.3f}")
    print(f"future mass captured                     {future_mass(captured):.3f}")
    print(f"hidden states change by                  {changed:.3f}")


if __name__ == "__main__":
    main()
