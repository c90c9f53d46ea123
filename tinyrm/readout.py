"""Logits -> Preference.

With z = logit(first choice) - logit(second choice) for one order:

    one order      margin = z(A, B) / T1
    both orders    margin = (z(A, B) - z(B, A)) / 2T

and with s, the score of a response that is read alone

    two responses  margin = (s(A) - s(B)) / T

T is the bundle's calibration temperature, and T1 the one that fits one order, whose margin also holds the bias for the
first position; T in bundles that have no T1. With both orders, and with scores, the margin is antisymmetric by
construction: swapping A and B flips its sign, so P(A better | A, B) + P(B better | B, A) = 1 whatever bias the model
has for the first position.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tinyrm.comparison import Preference, probabilities
from tinyrm.confidence import Temperature
from tinyrm.encoding import Encoding
from tinyrm.errors import EngineFailed
from tinyrm.sets import read_set


def read_out(logits: NDArray[np.float32] | Sequence[Sequence[float]], temperature: Temperature | float) -> Preference:
    """Return the preference from logits [orders, 2] or from the scores of A and B [2, 1].

    The orders are one (A first) or two (A first, B first).

    temperature: a number stands for one that no pairs determined.

    Raises EngineFailed for logits that are not finite.
    """
    calibrated = temperature if isinstance(temperature, Temperature) else Temperature(temperature)
    rows = np.asarray(logits, dtype=np.float64)
    if rows.shape not in ((1, 2), (2, 2), (2, 1)) or not np.isfinite(rows).all():
        raise EngineFailed(f"expected two finite logits for each order or response, got {rows.tolist()}")
    if rows.shape == (2, 1):
        rows = rows.T  # from here on, like one order; a model that scores responses has one temperature
    first_minus_second = rows[:, 0] - rows[:, 1]
    order_margins = (first_minus_second * (1, -1)[: len(rows)]).tolist()
    margin = sum(order_margins) / (len(order_margins) * calibrated.of_orders(len(rows)))
    p_a, p_b = probabilities(margin)
    return Preference(p_a, p_b, margin, tuple(order_margins), calibrated)


def recalibrate(preference: Preference, temperature: Temperature) -> Preference:
    """Return the preference at another temperature."""
    rows = [[margin, 0.0] for margin in preference.order_margins]
    if len(rows) == 2:
        rows[1].reverse()
    return read_out(rows, temperature)


def read_columns(sequences: Sequence[Encoding], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `read_out` takes, from logits [sequences, outputs] of a comparison that `Encoder.assemble` made.

    Of a set they are the scores of A and B [2, 1], which one row holds in an order of its own. Raises EngineFailed.
    """
    columns = sequences[0].columns
    return read_set(logits[0], columns).astype(np.float32)[:, None] if columns else logits


def read_score(logits: NDArray[np.float32]) -> float:
    """Return the score of one response from logits [1, 1]. Raises EngineFailed for one that is not finite."""
    rows = np.asarray(logits, dtype=np.float64)
    if rows.shape != (1, 1) or not np.isfinite(rows).all():
        raise EngineFailed(f"expected one finite logit of a response, got {rows.tolist()}")
    return float(rows[0, 0])
