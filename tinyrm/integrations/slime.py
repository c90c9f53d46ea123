"""slime and miles: a reward function for `--custom-rm-path`, for whole groups (`--group-rm`) and for single samples."""

import os
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from tinyrm.chat import BLANK, TextOrTurns
from tinyrm.errors import CallRefused
from tinyrm.integrations import score_alone, training_client
from tinyrm.markup import parse_prompt, strip_special


class Sample(Protocol):
    """What is read of a sample."""

    prompt: TextOrTurns
    response: str
    label: Any


async def reward(args: Any, samples: Sequence[Sample] | Sample, **_: Any) -> list[float] | float:
    """Return the reward of each sample of a group, or that of one sample.

    With `--group-rm`, slime passes all samples of a prompt, which are compared with each other in one call. A sample
    alone, as in evaluations, gets its score, which needs a model that scores responses alone.

    args: `rm_url` is the address of the service, by default the variable TINYRM_URL. Its query holds options of
        `Client.rewards` or `Client.score`, as in `http://HOST:8000?domain=chat`. With strategy=reference, samples are
        compared with their label.
    samples: prompts and responses are texts, also in a chat template, or messages.

    The variable TINYRM_API_KEY is the key, if the service requires one. Raises CallFailed: a service that restarts or
    is busy is called again for 10 minutes, and no reward is made up.
    """
    base_url, options = _address(getattr(args, "rm_url", None) or os.environ.get("TINYRM_URL", "http://127.0.0.1:8000"))
    client = training_client(base_url, os.environ.get("TINYRM_API_KEY"))
    group = samples if isinstance(samples, Sequence) else [samples]
    prompt = parse_prompt(group[0].prompt)
    responses = [strip_special(sample.response) or BLANK for sample in group]
    if options.get("strategy") == "reference":
        options = {"scale": "unit"} | options | {"reference": strip_special(str(group[0].label)) or BLANK}
    if len(group) > 1 or "reference" in options:
        rewards = (await client.rewards(prompt, responses, **options)).rewards
    else:
        try:
            rewards = [await score_alone(client, prompt, responses[0], options)]
        except CallRefused as error:
            if error.type == "not_pointwise":
                error.add_note("this model compares: start slime with --group-rm and at least 2 samples per prompt")
            raise
    return rewards if isinstance(samples, Sequence) else rewards[0]


def _address(url: str) -> tuple[str, dict[str, Any]]:
    """Return the address of the service, also from that of its dialect, and the options in the query."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/rm")
    return parts._replace(path=path, query="").geturl(), dict(parse_qsl(parts.query))
