"""A scorer of single responses without a model: a longer text scores higher."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyrm.encoding import Encoder, Encoding
from tinyrm.engines.base import EngineInfo, cpu_info
from tinyrm.scorer import Scorer
from tinyrm.spec import Spec


@dataclass
class LengthEngine:
    """logits [sequences, 1]: a tenth of the number of tokens. `lengths` are those of all sequences so far."""

    lengths: list[int] = field(default_factory=list)
    info: EngineInfo = field(default_factory=lambda: cpu_info("by-length", "fp32"))

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        lengths = [len(sequence) for sequence in sequences]
        self.lengths += lengths
        return np.array(lengths, dtype=np.float32)[:, None] / 10


def response_scorer(encoder: Encoder, spec: Spec, engine: LengthEngine) -> Scorer:
    """Return a scorer that reads responses in the wording of a spec for pairs, with the tokens of `encoder`."""
    template = spec.template.of_one_response()
    alone = Encoder(encoder._text.tokenizer, template, encoder.special, encoder.max_tokens)
    return Scorer(alone, engine, spec.model_copy(update={"template": template}))
