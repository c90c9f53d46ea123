"""RewardBench: a "Custom Classifier", for the harness's `REWARD_MODEL_CONFIG`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tinyrm.chat import Turns
from tinyrm.client import Client, ItemError
from tinyrm.errors import InvalidInput
from tinyrm.integrations import preference_item
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


def model_config(
    base_url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout_s: float = 30.0, **options: Any
) -> dict[str, Any]:
    """Return the entry for the harness: `REWARD_MODEL_CONFIG["tinyrm"] = model_config()`, then `--model tinyrm`.

    options: of `Client.compare`: domain, instruction, swap, model.
    """

    def build(*_: object, **__: object) -> ServedModel:
        return ServedModel(Client(base_url, api_key, timeout_s=timeout_s), options)

    return {
        "model_builder": build,
        "pipeline_builder": Pipeline,
        "quantized": False,
        "custom_dialogue": True,
        "model_type": "Custom Classifier",
    }
