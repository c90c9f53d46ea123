"""The cost of one forward pass, by three counts. One multiply and one add are two operations.

All count one sequence of S tokens; a comparison with `swap` is two sequences. Padding is not counted (it has its own
metrics). With h hidden, i intermediate, L layers, w = window / 2, matrix products only:

    linear      per token and layer: Wqkv 3h*h, Wo h*h, Wi h*2i (GeGLU has two halves; h*i without a gate), mlp Wo i*h
                = 4h^2 + 3hi multiply-adds
    attention   per pair (query, key) and layer: h for the score, h for the weighted sum = 2h multiply-adds
    head        at the row that is read only: dense h*h, then the rows of the outputs, at most 2h
    distances   DeBERTa adds two terms to each score, from embeddings of d distances between query and key: each token's
                query and key meet those of all distances, 2*d*h multiply-adds per token and layer

Embedding look-ups, norms, softmax, rotary turns and activations are left out: they are below 1 % of the total in the
published sizes.

`exact_flops` counts what the logits need and nothing else: a global layer sees S^2 pairs, a local one those with
|q - k| <= w, and a last layer that is global needs keys and values of all tokens but everything else only at the row
that is read, unless the mean of all rows is read. Of the distances those count that a sequence has, at most 2S - 1, and
their own projections do not count, because they are constants.
Every engine's speed is reported for this count. `executed_flops` counts what a graph computes, including scores that it
masks; tests compare it with torch's own counter on both graphs, which proves the terms that the two counts share.

Paper's formula (`paper_flops`; Tiny Reward Models, arXiv 2507.09973, "compute"): 2N + 6N * L/h per token with N all
parameters, embeddings too. Its second term does not depend on the context length; we report it because the paper's
figures do, and use the exact count for everything else.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

GraphKind = Literal["plain", "optimised"]
# What the responses of a set see of each other.
Others = Literal["none", "masks", "tokens"]


class Geometry(BaseModel):
    """The sizes that determine the cost. `window` is the full width: a token sees window / 2 tokens to each side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    heads: int = Field(gt=0)
    window: int = Field(gt=0)
    global_layers: tuple[int, ...]
    vocab: int = Field(gt=0)
    gated: bool = Field(default=True, description="Whether the MLP is a GLU, with two products on its way in.")
    distances: int = Field(default=0, ge=0, description="Embeddings of distances that attention uses, as in DeBERTa.")
    embedding: int = Field(default=0, ge=0, description="Width of the embedding, if a product widens it as in ELECTRA.")
    reads_mean: bool = Field(default=False, description="Whether the head reads the mean of all rows.")

    @property
    def last_is_global(self) -> bool:
        return self.layers - 1 in self.global_layers

    @property
    def last_is_pruned(self) -> bool:
        """Whether the last layer needs only one row's queries."""
        return self.last_is_global and not self.reads_mean


def exact_flops(geometry: Geometry, tokens: int) -> int:
    """Return the operations that the logits of a sequence of `tokens` tokens need."""
    return _flops(geometry, tokens, window_pairs(tokens, geometry.window // 2), pruned=geometry.last_is_pruned)


def unpruned_flops(geometry: Geometry, tokens: int) -> int:
    """Return the operations of all layers at every row, without a head: what an encoder that prunes nothing runs."""
    h = geometry.hidden
    return _flops(geometry, tokens, window_pairs(tokens, geometry.window // 2), pruned=False) - 2 * (h * h + 2 * h)


def full_head_flops(geometry: Geometry, tokens: int) -> int:
    """Return the operations of all layers and of a masked LM's head at every row, over the whole vocabulary."""
    head = tokens * (geometry.hidden**2 + geometry.vocab * geometry.hidden)
    return unpruned_flops(geometry, tokens) + 2 * head


def matrix_weights(geometry: Geometry) -> int:
    """Return the weights of the layers' matrices, which each pass reads at least once."""
    h, i = geometry.hidden, geometry.intermediate
    return geometry.layers * (4 * h * h + (3 if geometry.gated else 2) * h * i)


def set_flops(
    geometry: Geometry, prompt: int, responses: Sequence[int], *, others: Others = "none", crossing_layers: int = 0
) -> int:
    """Return the operations that the logits of a set need.

    The prompt sees itself, a response the prompt and itself, in local layers as far as the window of its positions
    reaches, which restart where the prompt ends. In crossing layers responses see more of each other.

    prompt: tokens of the prompt.
    responses: tokens of each response, with its mask, which is the row that is read.
    others, crossing_layers: what responses see of each other, and in how many of the upper global layers.
    """
    h, half, n, pruned = geometry.hidden, geometry.window // 2, len(responses), geometry.last_is_pruned
    tokens, of_responses = prompt + sum(responses), sum(responses)
    seen = prompt * prompt + sum(length * (prompt + length) for length in responses)
    near = window_pairs(prompt, half) + sum(
        # As many pairs have a query in the response and a key in the prompt as the other way round.
        (window_pairs(prompt + length, half) - window_pairs(prompt, half) + window_pairs(length, half)) // 2
        for length in responses
    )
    of_others = {
        "none": 0,
        "masks": n * (n - 1),
        "tokens": of_responses**2 - sum(length * length for length in responses),
    }[others]
    mlp = (3 if geometry.gated else 2) * h * geometry.intermediate
    whole, n_global = geometry.layers - pruned, len(geometry.global_layers) - pruned
    linear = tokens * geometry.embedding * h + whole * tokens * (4 * h * h + mlp)
    crossing = crossing_layers - (pruned and crossing_layers > 0)
    pairs = n_global * seen + crossing * of_others + (whole - n_global) * near
    if pruned:
        linear += tokens * 2 * h * h + n * (2 * h * h + mlp)
        pairs += n * prompt + of_responses
        if crossing_layers:
            pairs += (n - 1) * (of_responses if others == "tokens" else n)
    return 2 * (linear + 2 * h * pairs + n * (h * h + 2 * h))


def executed_flops(geometry: Geometry, tokens: int, graph: GraphKind) -> int:
    """Return the operations that a graph runs for a sequence of `tokens` tokens."""
    if graph == "plain":
        # It projects the embeddings of all distances in each layer, for queries and for keys.
        unused = geometry.distances - min(geometry.distances, 2 * tokens - 1)
        hidden = geometry.hidden
        distances = 4 * geometry.layers * hidden * (geometry.distances * hidden + unused * tokens)
        return distances + _flops(geometry, tokens, tokens * tokens, pruned=False)
    return _flops(geometry, tokens, block_pairs(tokens, geometry.window // 2), pruned=geometry.last_is_pruned)


def paper_flops(parameters: int, geometry: Geometry, tokens: int) -> float:
    """Return the operations of a sequence by the paper's formula, (2N + 6N * layers / hidden) * tokens."""
    return tokens * (2 * parameters + 6 * parameters * geometry.layers / geometry.hidden)


def window_pairs(tokens: int, half_window: int) -> int:
    """Return the pairs with |query - key| <= half_window; equals 129 * S - 4160 for half_window 64 and S >= 129."""
    outside = max(0, tokens - half_window - 1) * max(0, tokens - half_window)
    return tokens * tokens - outside


def block_pairs(tokens: int, half_window: int) -> int:
    """Return the pairs (query, key) that blocks compute: half_window queries against three blocks, or all there are."""
    block, span = min(tokens, half_window), min(tokens, 3 * half_window)
    return -(-tokens // half_window) * block * span


def _flops(geometry: Geometry, tokens: int, local_pairs: int, *, pruned: bool) -> int:
    """Return the operations of a sequence.

    local_pairs: pairs (query, key) of one local layer.
    pruned: whether the last layer computes only the row that is read.
    """
    h, i = geometry.hidden, geometry.intermediate
    mlp = (3 if geometry.gated else 2) * h * i
    whole = geometry.layers - pruned
    n_global = len(geometry.global_layers) - pruned
    linear = tokens * geometry.embedding * h + whole * tokens * (4 * h * h + mlp)
    pairs = n_global * tokens * tokens + (whole - n_global) * local_pairs
    if pruned:
        linear += tokens * 2 * h * h + 2 * h * h + mlp
        pairs += tokens
    distances = min(geometry.distances, 2 * tokens - 1)
    # The one row of a pruned layer meets each distance once as a query; the keys meet those to it.
    linear += 2 * whole * tokens * distances * h + pruned * (distances + tokens * bool(distances)) * h
    return 2 * (linear + 2 * h * pairs + h * h + 2 * h)
