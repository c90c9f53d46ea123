"""The service that people write themselves: FastAPI around sentence-transformers' CrossEncoder on torch.

    python -m loadtests.bench.workers.fastapi_http --model FOLDER --threads 2 --port 8000

A request waits until the one before it is done: calls of torch at the same time would share the same cores, and each
would be slower.
"""

import argparse
import sys
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder


class RerankRequest(BaseModel):
    """Texts to score against one query."""

    query: str
    documents: list[str]


def application(model: Path) -> FastAPI:
    app = FastAPI()
    encoder = CrossEncoder(str(model), device="cpu", local_files_only=True)
    identity = torch.nn.Identity()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/rerank")
    async def rerank(request: RerankRequest) -> dict[str, list[float]]:
        pairs = [(request.query, document) for document in request.documents]
        scores = encoder.predict(pairs, activation_fn=identity, show_progress_bar=False)
        return {"scores": [float(score) for score in scores]}

    return app


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    uvicorn.run(application(options.model), host="127.0.0.1", port=options.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
