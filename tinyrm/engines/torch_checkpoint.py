"""A checkpoint as an engine, before it is exported: for training, evaluation and comparisons with an export."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tinyrm.batching import collate
from tinyrm.encoding import Encoding, SpecialTokens
from tinyrm.engines.base import cpu_info, gpu_info
from tinyrm.families.plain import plain_module
from tinyrm.manifest import CLOZE_HEAD, Head


class TorchEngine:
    """Logits as `transformers` computes them, in fp32.

    label_ids: of a cloze, of which only these logits are computed; None for a classifier.
    device: `cpu` or `cuda`; None selects a GPU if there is one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        special: SpecialTokens,
        label_ids: tuple[int, int] | None,
        device: str | None = None,
        *,
        head: Head = CLOZE_HEAD,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.info = (cpu_info if self.device == "cpu" else gpu_info)(f"torch-{self.device}", "fp32", pads=True)
        self._model = plain_module(model, head, special, label_ids).to(self.device)
        self._pad_id = special.pad

    def run(self, sequences: Sequence[Encoding]) -> NDArray[np.float32]:
        with torch.inference_mode():
            arrays = (torch.from_numpy(array).to(self.device) for array in collate(sequences, self._pad_id))
            logits: NDArray[np.float32] = self._model(*arrays).float().cpu().numpy()
        return logits
