"""The sizes that are measured, and the operations that one pair needs. One multiply and one add are two operations."""

from dataclasses import dataclass

HALF_WINDOW = 64
GLOBAL_EVERY = 3


@dataclass(frozen=True, slots=True)
class Geometry:
    """A ModernBERT. `tokens`: lengths measured by default."""

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    tokens: tuple[int, ...] = (64, 256, 512, 1024, 2048, 4096)


GEOMETRIES = {
    geometry.name: geometry
    for geometry in (
        Geometry("starter", 16384, 256, 384, 7, 4, tokens=(64, 256, 512, 1024, 2048)),
        Geometry("base", 50368, 768, 1152, 22, 12),
        Geometry("large", 50368, 1024, 2624, 28, 16),
    )
}


def useful_flops(geometry: Geometry, tokens: int) -> int:
    """Operations that the two label logits of one reading of `tokens` tokens need: matrix products only.

    Where the last layer is global, only its keys and values are needed for every token, the rest of it at the mask.
    """
    h, i = geometry.hidden, geometry.intermediate
    per_token = 2 * (4 * h * h + 3 * h * i)
    body = geometry.layers - 1
    if body % GLOBAL_EVERY == 0:
        linear = body * tokens * per_token + tokens * 2 * 2 * h * h + 2 * (2 * h * h + 3 * h * i)
        pairs = _attended_pairs(body, tokens) + tokens
    else:
        linear = geometry.layers * tokens * per_token
        pairs = _attended_pairs(geometry.layers, tokens)
    return linear + 4 * h * pairs + 2 * (h * h + 2 * h)


def window_pairs(tokens: int) -> int:
    """Pairs (query, key) at most HALF_WINDOW apart."""
    outside = max(0, tokens - HALF_WINDOW - 1) * max(0, tokens - HALF_WINDOW)
    return tokens * tokens - outside


def products(geometry: Geometry, tokens: int) -> list[tuple[int, int, int]]:
    """The two matrix products (rows, inner, columns) whose rates say what a layer of this length could reach."""
    h, i = geometry.hidden, geometry.intermediate
    return [(tokens, h, 3 * h), (tokens, i, h)]


def _attended_pairs(layers: int, tokens: int) -> int:
    """Summed over the first `layers` layers, all queries."""
    n_global = len(range(0, layers, GLOBAL_EVERY))
    return n_global * tokens * tokens + (layers - n_global) * window_pairs(tokens)
