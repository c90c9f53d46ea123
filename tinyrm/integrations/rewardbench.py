"""RewardBench: entries for the harness's `REWARD_MODEL_CONFIG`, one for comparisons and one for single scores."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tinyrm.chat import BLANK, Prompt, Turns
from tinyrm.client import Client, ItemError
from tinyrm.client.batches import CONCURRENCY
from tinyrm.errors import InvalidInput
from tinyrm.integrations import preference_item
from tinyrm.markup import split_dialogue
from tinyrm.preferences import read_preference

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ServedModel:
    """Replaces the harness's model. The harness sets `config.pad_token_id`, which is not used."""

    client: Client
    options: dict[str, Any]
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pad_token_id=None))


class Pipeline:
    """A pipeline of the harness, which compares pairs with a service.

    tokenizer: not used; the service has its own.
    """

    def __init__(self, task: str, model: ServedModel, tokenizer: object = None) -> None:
        self.task, self.model, self.tokenizer = task, model, tokenizer

    def __call__(
        self,
        candidates_A: Sequence[Turns],  # noqa: N803  # the harness's names
        candidates_B: Sequence[Turns],  # noqa: N803
        **_: object,
    ) -> "torch.Tensor":
        """Return whether A is better, a tensor of bools [pairs]. A tie counts as a loss.

        candidates_A: conversations; they end in the response.
        candidates_B: conversations that begin like those of A and end in another response.

        Ignores the settings of a local pipeline (batch_size, truncation, max_length, ...).

        Raises CallFailed, Mismatch if the conversations of a pair begin with different prompts, InvalidInput if they
        cannot be read or the service refuses them.
        """
        import torch  # noqa: PLC0415  # the harness needs it, the rest of this package does not

        pairs = zip(candidates_A, candidates_B, strict=True)
        texts = [read_preference({"chosen": a, "rejected": b}) for a, b in pairs]
        items = [preference_item(pair, self.model.options) for pair in texts]
        a_wins = []
        for result in self.model.client.compare_many(items):
            if isinstance(result, ItemError):
                raise InvalidInput(f"a pair cannot be compared: {result.type}: {result.message}")
            a_wins.append(result.probability_a > result.probability_b)
        return torch.tensor(a_wins, dtype=torch.bool)


class ScorePipeline:
    """A pipeline of the harness, which scores conversations one by one with a service whose model reads responses.

    tokenizer: its chat template, if it has one, makes the harness's texts; its ids are not used.
    """

    def __init__(self, task: str, model: ServedModel, tokenizer: object = None) -> None:
        self.task, self.model, self.tokenizer = task, model, tokenizer

    def __call__(self, samples: Sequence[str], **_: object) -> "torch.Tensor":
        """Return the raw score of each conversation, a tensor of floats [samples].

        samples: conversations in a chat template that docs/dialects.md names; they end in the response.

        Ignores the settings of a local pipeline (batch_size, truncation, max_length, ...).

        Raises CallFailed, among others for a model that reads pairs; InvalidInput for a text in another template.
        """
        import torch  # noqa: PLC0415  # the harness needs it, the rest of this package does not

        dialogues = [split_dialogue(text) for text in samples]

        def score(dialogue: tuple[Prompt, str]) -> float:
            prompt, response = dialogue
            (result,) = self.model.client.score(prompt, [response or BLANK], **self.model.options).results
            return result.raw

        with ThreadPoolExecutor(CONCURRENCY, thread_name_prefix="rewardbench") as pool:
            return torch.tensor(list(pool.map(score, dialogues)), dtype=torch.float32)


def model_config(
    base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 30.0, **options: Any
) -> dict[str, Any]:
    """Return the entry for the harness: `REWARD_MODEL_CONFIG["tinyrm"] = model_config()`, then `--model tinyrm`.

    The service may have a model of any kind. The harness gets the winner of each pair and no scores.

    options: of `Client.compare`: domain, instruction, swap, model, reasoning.
    """
    return {
        "model_builder": partial(_build, base_url, api_key, timeout_s, options),
        "pipeline_builder": Pipeline,
        "quantized": False,
        "custom_dialogue": True,
        "model_type": "Custom Classifier",
    }


def classifier_config(
    base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 30.0, **options: Any
) -> dict[str, Any]:
    """Return the entry for a service whose model reads responses, which the harness treats as its own classifiers.

    Each response is scored alone. The harness saves the scores, and its script for RewardBench 2 accepts the entry.

    options: of `Client.score`: domain, instruction, model, reasoning.
    """
    return {
        "model_builder": partial(_build, base_url, api_key, timeout_s, options),
        "pipeline_builder": ScorePipeline,
        "quantized": False,
        "custom_dialogue": False,
        "model_type": "Seq. Classifier",
    }


def _build(
    base_url: str, api_key: str | None, timeout_s: float, options: dict[str, Any], *_: object, **__: object
) -> ServedModel:
    """Return the model of an entry. The harness adds its name and the settings of a local model."""
    return ServedModel(Client(base_url, api_key, timeout_s=timeout_s), options)
