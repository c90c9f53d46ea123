"""Run rollouts through the simple agent of NeMo-Gym, with the service as its resources server.

Arguments: the ports of the service, of the agent and of the policy, and a file with the samples. Prints the reply of
/run to each sample, or null if it was refused, the agent's aggregate of them, and what NeMo-Gym's own code computes
from the same replies.
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class Nothing:
    def __init__(self, *_: Any) -> None: ...


# Imported by NeMo-Gym, and used only for its own logs and profiles.
STANDINS: dict[str, dict[str, Any]] = {
    "wandb": {"Run": Nothing, "Histogram": Nothing},
    "wandb.util": {},
    "yappi": {},
    "gprof2dot": {"main": Nothing},
    "pydot": {"graph_from_dot_file": Nothing},
}
for name, parts in STANDINS.items():
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(parts)
vars(sys.modules["wandb"])["util"] = sys.modules["wandb.util"]

import uvicorn  # noqa: E402
from fastapi import FastAPI, Request  # noqa: E402
from nemo_gym import server_utils  # noqa: E402
from nemo_gym.config_types import BaseServerConfig  # noqa: E402
from nemo_gym.global_config import GlobalConfigDictParser  # noqa: E402
from nemo_gym.reward_profile import compute_aggregate_metrics  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig  # noqa: E402

from tests.support.rollouts import Sample, generation  # noqa: E402

SERVICE, AGENT, POLICY = map(int, sys.argv[1:4])
SAMPLES: list[dict[str, Any]] = json.loads(Path(sys.argv[4]).read_text())
HERE = "127.0.0.1"
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "integrations.md"


def configuration() -> DictConfig:
    """Return the configuration in the documentation, checked by NeMo-Gym, with the ports of this run."""
    (text,) = re.findall(r"```yaml\n(tinyrm:.*?)```", DOCUMENTATION.read_text(), flags=re.DOTALL)
    servers = OmegaConf.create(text)
    policy = {"entrypoint": "app.py", "host": HERE, "port": POLICY}
    servers.policy_model = {"responses_api_models": {"policy_model": policy}}
    servers.simple_agent.responses_api_agents.simple_agent.update(host=HERE, port=AGENT)
    servers.tinyrm.resources_servers.tinyrm.port = SERVICE
    parser = GlobalConfigDictParser()
    parser.validate_and_populate_defaults(parser.filter_for_server_instance_configs(servers), HERE, 1, 2)
    return servers


def make_agent() -> SimpleAgent:
    servers = configuration()
    head = BaseServerConfig(host=HERE, port=1)
    client = server_utils.ServerClient(head_server_config=head, global_config_dict=servers)
    agent = OmegaConf.to_container(servers.simple_agent.responses_api_agents.simple_agent)
    return SimpleAgent(config=SimpleAgentConfig(name="simple_agent", **agent), server_client=client)


def make_policy() -> FastAPI:
    """Return a model that writes a sample's response when its generation ends."""
    app = FastAPI()

    @app.post("/v1/responses")
    async def responses(request: Request) -> dict[str, Any]:
        sample = Sample(**SAMPLES[int((await request.json())["metadata"]["sample"])])
        await generation(sample)
        part = {"type": "output_text", "text": sample.response, "annotations": []}
        message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        usage = {"input_tokens": 9, "output_tokens": len(sample.response), "total_tokens": 9} | details
        known = {"id": "r", "created_at": 0.0, "model": "m", "object": "response", "parallel_tool_calls": True}
        return known | {"tool_choice": "auto", "tools": [], "output": [message], "usage": usage}

    return app


async def serve(app: FastAPI, port: int) -> uvicorn.Server:
    server = uvicorn.Server(uvicorn.Config(app, HERE, port, log_level="error"))
    server.running = asyncio.create_task(server.serve())  # type: ignore[attr-defined]
    while not server.started:  # noqa: ASYNC110  # it has no event for this
        await asyncio.sleep(0.01)
    return server


async def main() -> None:
    server_utils.set_global_aiohttp_client(server_utils.GlobalAIOHTTPAsyncClientConfig())
    agent = make_agent()
    servers = [await serve(agent.setup_webserver(), AGENT), await serve(make_policy(), POLICY)]

    async def run(number: int, sample: dict[str, Any]) -> Any:
        created = {"input": [{"role": "user", "content": sample["prompt"]}], "metadata": {"sample": str(number)}}
        task = {"_ng_task_index": sample["group"], "_ng_rollout_index": number, "responses_create_params": created}
        reply = await agent.server_client.post("simple_agent", "/run", json=task)
        return await server_utils.get_response_json(reply) if reply.ok else None

    rewarded = await asyncio.gather(*(run(*numbered) for numbered in enumerate(SAMPLES)))
    replies = [reply for reply in rewarded if reply]
    # As its collection sends them: without the texts.
    texts = ("response", "responses_create_params")
    stripped = [
        {name: value for name, value in reply.items() if name not in texts}
        | {"response": {"usage": reply["response"]["usage"]}}
        for reply in replies
    ]
    reply = await agent.server_client.post("simple_agent", "/aggregate_metrics", json={"verify_responses": stripped})
    await server_utils.raise_for_status(reply)
    aggregated = await server_utils.get_response_json(reply)
    for server in servers:
        server.should_exit = True
        await server.running  # type: ignore[attr-defined]
    await server_utils.get_global_aiohttp_client().close()
    own = compute_aggregate_metrics(stripped).model_dump()
    print(json.dumps({"replies": rewarded, "aggregated": aggregated, "own": own}))


asyncio.run(main())
