"""Losses of probabilities and weights, for every head. Without these in a batch, those of plain verdicts are used.

All are means over the rows, or groups, of a batch of weight times cross-entropy. They are not divided by the batch's
weights, which have the mean 1 over the data set (`training.data.soft`): so the mean over micro batches and processes is
in expectation the weighted mean over the data.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def soft_cross_entropy(log_probabilities: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over rows of -w (p log q_first + (1 - p) log q_second), the loss of arXiv 1503.02531.

    For a head that scores responses alone, q_first = sigmoid(s_first - s_second), so this is the Bradley-Terry loss
    with p in place of the verdict: -(p log sigmoid(d) + (1 - p) log sigmoid(-d)), d = s_first - s_second. With
    RankNet's target probabilities it is RankNet's cost (Burges et al., ICML 2005), with p = sigmoid(eta (r_first -
    r_second)) that of reward-aware preference optimisation (arXiv 2502.00203).

    log_probabilities: log q, [rows, 2].
    targets: p, [rows].
    weights: w, [rows]; None: 1.
    """
    rows = targets * log_probabilities[:, 0] + (1 - targets) * log_probabilities[:, 1]
    return -(rows if weights is None else weights * rows).mean()


def choice_loss(label_logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy over the two choices, label_logits [rows, 2], with what a batch knows of its rows.

    That is `targets` and `weights`, or `is_second`, the verdict.
    """
    if "targets" in inputs:
        return soft_cross_entropy(label_logits.float().log_softmax(dim=-1), inputs["targets"], inputs["weights"])
    return two_way_loss(label_logits, inputs["is_second"])


def two_way_loss(label_logits: Tensor, second_is_right: Tensor) -> Tensor:
    """Return cross-entropy over the two labels only; label_logits [rows, 2], second_is_right [rows]."""
    return nn.functional.cross_entropy(label_logits, second_is_right.long())


def group_loss(scores: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the mean over groups of the loss of what is known of their order.

    A group with labels has the mean over its labelled pairs of the Bradley-Terry loss with the probability in place of
    the verdict: Plackett and Luce's model has no likelihood of a probability, and of a pair it is Bradley and Terry's.
    Any other group has the loss of Plackett and Luce (`plackett_luce`).

    scores: [groups, responses].
    inputs: `is_worse` of `GroupCollator`, and its `targets` and `weights` if a group of the batch has labels.
    """
    if "targets" not in inputs:
        return plackett_luce(scores, inputs["is_worse"])
    targets, weights = inputs["targets"], inputs["weights"]
    difference = scores[:, :, None] - scores[:, None, :]
    log_right, log_wrong = nn.functional.logsigmoid(difference), nn.functional.logsigmoid(-difference)
    terms = -weights * (targets * log_right + (1 - targets) * log_wrong)
    labelled = (weights > 0).sum(dim=(1, 2))
    soft = terms.sum(dim=(1, 2)) / labelled.clamp(min=1)
    return torch.where(labelled > 0, soft, of_orders(scores, inputs["is_worse"])).mean()


def plackett_luce(scores: Tensor, is_worse: Tensor) -> Tensor:
    """Return the mean over groups of the negative log-likelihood of what is known of their order.

    Each response that is better than some others is chosen before them: -log(e^s_i / (e^s_i + sum of their e^s_j)).
    For a complete ranking that is the Plackett-Luce likelihood (Plackett 1975), for a pair that of Bradley and Terry.
    A group counts once, however many responses it has: its terms are averaged.

    scores: [groups, responses].
    is_worse: bool [groups, responses, responses], whether response j is known to be worse than response i.
    """
    return of_orders(scores, is_worse).mean()


def of_orders(scores: Tensor, is_worse: Tensor) -> Tensor:
    """Return the terms of `plackett_luce`, [groups]; 0 where nothing is known, as of a tie."""
    among = is_worse | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    rivals = scores[:, None, :].expand(among.shape).masked_fill(~among, -torch.inf)
    terms = rivals.logsumexp(dim=2) - scores
    counts = is_worse.any(dim=2)
    return (terms * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
