"""A cascade of two models in this process: one orders all responses, the other compares the best of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tinyrm.chat import TextOrTurns
from tinyrm.comparison import CASCADE_TOP
from tinyrm.errors import InvalidInput
from tinyrm.ranking import Ranking, settle
from tinyrm.scorer import Scorer
from tinyrm.spec import shared_domain


@dataclass(frozen=True, slots=True)
class Cascade:
    """Two models that rank together, as `/v1/rank` does with `strategy="cascade"`.

        cascade = Cascade(Scorer.open("models/starter"), Scorer.open("models/pairwise"))
        cascade.rank("What is 2 + 2?", ["4", "5", "Four.", "No idea.", "22"]).order

    pointwise: scores responses alone; n sequences, or one of all responses.
    pairwise: reads two responses at once; top (top - 1) sequences in both orders.
    top: how many of the best responses are compared with each other, at least 2; of fewer responses, all.

    Raises InvalidInput for models of other kinds, and for another `top`.
    """

    pointwise: Scorer
    pairwise: Scorer
    top: int = CASCADE_TOP

    def __post_init__(self) -> None:
        first, second = self.pointwise.encoder, self.pairwise.encoder
        if not first.scores_alone or second.reads != "pair":
            related = " whose scores depend on each other" if first.reads == "set" and not first.scores_alone else ""
            raise InvalidInput(
                "a cascade needs a model that scores responses alone and one that reads a pair, in this order; the "
                f"first reads a {first.reads}{related}, the second a {second.reads}"
            )
        if self.top < 2:
            raise InvalidInput(f"top must be at least 2, not {self.top}")

    def rank(
        self,
        prompt: TextOrTurns,
        responses: Sequence[TextOrTurns],
        *,
        domain: str | None = None,
        instruction: str | None = None,
        swap: bool = True,
    ) -> Ranking:
        """Return the ranking; see `tinyrm.ranking.settle`.

        domain: of both models; one that lacks it uses its default domain.
        swap: whether the pairwise model scores both orders.

        The other arguments and the errors are those of `Scorer.compare`.
        """
        of_pointwise, of_pairwise = shared_domain(domain, self.pointwise.spec, self.pairwise.spec)
        first = self.pointwise.rank(prompt, responses, domain=of_pointwise, instruction=instruction)
        best = [responses[i] for i in first.order[: self.top]]
        if len(best) < 2:
            return first
        second = self.pairwise.rank(prompt, best, domain=of_pairwise, instruction=instruction, swap=swap)
        return settle(first, second.margins)
