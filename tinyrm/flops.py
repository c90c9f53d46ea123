"""What one forward pass costs, by two formulas. One multiply and one add are two operations.

Both count one reading of one cloze text of S tokens; a comparison with `swap` is two readings. They count what the
model needs (model FLOPs), not what a runtime may do besides: padding has metrics of its own, and scores that a graph
computes only to mask them away are not counted.

Exact count (`exact_flops`), matrix products only, with h hidden, i intermediate, L layers, w = window / 2:

    linear      per token and layer: Wqkv 3h*h, Wo h*h, Wi h*2i (GeGLU has two halves), mlp Wo i*h
                = 4h^2 + 3hi multiply-adds
    attention   per pair (query, key) and layer: h for the score, h for the weighted sum = 2h multiply-adds;
                a global layer has S^2 pairs, a local layer has the pairs with |q - k| <= w
    head        at the mask only: dense h*h, then the two label rows 2h

Embedding look-ups, norms, softmax, rotary turns and activations are left out: they are below 1 % of the total in the
published sizes.

Paper's formula (`paper_flops`; Tiny Reward Models, arXiv 2507.09973, "compute"): 2N + 6N * L/h per token with N all
parameters, embeddings too. Its second term does not depend on the context length; we report it because the paper's
figures do, and use the exact count for everything else.
"""

from pydantic import BaseModel, ConfigDict, Field


class Geometry(BaseModel):
    """The sizes that decide the cost. `window` is the full width: a token sees window / 2 to each side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    window: int = Field(gt=0)
    global_layers: tuple[int, ...]
    vocab: int = Field(gt=0)


def exact_flops(geometry: Geometry, tokens: int) -> int:
    """Operations of one reading of `tokens` tokens."""
    h, i = geometry.hidden, geometry.intermediate
    linear = geometry.layers * tokens * (4 * h * h + 3 * h * i)
    attention = 2 * h * _attended_pairs(geometry, tokens)
    head = h * h + 2 * h
    return 2 * (linear + attention + head)


def paper_flops(parameters: int, geometry: Geometry, tokens: int) -> float:
    """Operations of one reading by the paper's formula, (2N + 6N * layers / hidden) * tokens."""
    return tokens * (2 * parameters + 6 * parameters * geometry.layers / geometry.hidden)


def window_pairs(tokens: int, half_window: int) -> int:
    """Pairs (query, key) with |query - key| <= half_window; equals 129 * S - 4160 for half_window 64, S >= 129."""
    outside = max(0, tokens - half_window - 1) * max(0, tokens - half_window)
    return tokens * tokens - outside


def _attended_pairs(geometry: Geometry, tokens: int) -> int:
    """Summed over layers."""
    n_global = len(geometry.global_layers)
    local = window_pairs(tokens, geometry.window // 2)
    return n_global * tokens * tokens + (geometry.layers - n_global) * local
