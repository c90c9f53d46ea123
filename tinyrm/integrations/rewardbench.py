"""RewardBench: a "Custom Classifier", for the harness's `REWARD_MODEL_CONFIG`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tinyrm.chat import Turns, split_turns
from tinyrm.client import Client, CompareItem, CompareReply, ItemError
from tinyrm.errors import InvalidInput
from tinyrm.integrations import compare_item

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ServedModel:
    """Takes the place of the harness's model. The harness sets `config.pad_token_id`, which is not used here."""

    client: Client
    options: dict[str, Any]
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(pad_token_id=None))


class Pipeline:
    """Return whether A is the better response of each pair.

    tokenizer: unused; the service has its own.
    """

    def __init__(self, task: str, model: ServedModel, tokenizer: object = None) -> None:
        self.task, self.model, self.tokenizer = task, model, tokenizer

    def __call__(
        self,
        candidates_A: Sequence[Turns],  # noqa: N803  # the harness's names
        candidates_B: Sequence[Turns],  # noqa: N803
        **_: object,
    ) -> "torch.Tensor":
        """Return bools, shape (pairs,). A tie is a loss.

        candidates_A, candidates_B: conversations that differ in their last message, the response. Settings of a local
        pipeline (batch_size, truncation, max_length, ...) have no meaning here and are ignored.
        Raises what the client raises, ValueError if prompts differ, InvalidInput if a pair was refused.
        """
        import torch  # noqa: PLC0415  # the harness needs it, the rest of this package does not

        items = [self._item(a, b) for a, b in zip(candidates_A, candidates_B, strict=True)]
        return torch.tensor([_a_wins(result) for result in self.model.client.compare_many(items)], dtype=torch.bool)

    def _item(self, a: Turns, b: Turns) -> CompareItem:
        (prompt, response_a), (prompt_b, response_b) = split_turns(a), split_turns(b)
        if prompt != prompt_b:
            raise ValueError("the two conversations of a pair differ before their last message")
        return compare_item(prompt, response_a, response_b, self.model.options)


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


def _a_wins(result: CompareReply | ItemError) -> bool:
    if isinstance(result, ItemError):
        raise InvalidInput(f"a pair cannot be compared: {result.type}: {result.message}")
    return result.probability_a > result.probability_b
