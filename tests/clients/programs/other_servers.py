"""Call the service with the clients of other servers, and print what each returns.

Arguments: the service's address, an API key, a name that it serves, and a file with a prompt and responses.
"""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cohere
import litellm
import openai

URL, KEY, MODEL = sys.argv[1:4]
TEXTS: dict[str, Any] = json.loads(Path(sys.argv[4]).read_text())
PROMPT, RESPONSES = TEXTS["prompt"], TEXTS["responses"]
DIALOGUES = [f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n{one}<|im_end|>\n" for one in RESPONSES]


def ask_openai() -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    embedded = client.embeddings.create(model="any", input=DIALOGUES, extra_query={"group_size": len(DIALOGUES)})
    try:
        client.embeddings.create(model="any", input="no template")
    except openai.UnprocessableEntityError as error:
        refusal = {"type": error.type, "code": error.code, "message": error.message}
    return {
        "models": [model.id for model in client.models.list()],
        "model": client.models.retrieve(MODEL).id,
        "rewards": [one.embedding for one in embedded.data],
        "refusal": refusal,
    }


def ask_cohere() -> dict[str, Any]:
    client = cohere.ClientV2(api_key=KEY, base_url=URL)
    ranked = client.rerank(model="rerank-v3.5", query=PROMPT, documents=RESPONSES, top_n=3)
    return {"ranked": [(one.index, one.relevance_score) for one in ranked.results]}


def ask_litellm() -> dict[str, Any]:
    """Reranking, by the code of each provider whose server the service takes the place of."""
    ranked = {}
    paths = {"cohere": "/v2/rerank", "jina_ai": "/v1/rerank", "infinity": "", "hosted_vllm": "", "huggingface": ""}
    for provider, path in paths.items():
        reply = litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=PROMPT,
            documents=RESPONSES,
            api_base=URL + path,
            api_key=KEY,
            # infinity returns them as texts, and vLLM, whose paths this service has, as objects.
            return_documents=provider != "infinity",
        )
        ranked[provider] = [(one["index"], one["relevance_score"]) for one in reply.results]
    return ranked


def ask_llamafactory() -> dict[str, Any]:
    """Its own function, without what its package imports to train."""
    folder = next(folder for folder in map(Path, sys.path) if (folder / "llamafactory").is_dir())
    for name in ("llamafactory", "llamafactory.extras", "llamafactory.train", "llamafactory.train.ppo"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    from llamafactory.train.ppo.ppo_utils import get_rewards_from_server

    address = f"{URL.replace('://', f'://any:{KEY}@')}/v1/score/evaluation"
    refusal = None
    try:
        get_rewards_from_server(address, DIALOGUES)
    except KeyError as error:
        refusal = str(error)
    return {"rewards": get_rewards_from_server(f"{address}?model=alone", DIALOGUES).tolist(), "refusal": refusal}


print(
    json.dumps(
        {"openai": ask_openai(), "cohere": ask_cohere(), "litellm": ask_litellm(), "llamafactory": ask_llamafactory()}
    )
)
