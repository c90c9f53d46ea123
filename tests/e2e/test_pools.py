"""Test the clients of other languages and libraries, with their own pools of connections, on a real service."""

import asyncio
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import PATIENCE_S, started

PAIR = {"prompt": "q", "response_a": "a", "response_b": "b"}
POSTS = 200
# Pools keep idle connections for 5 s (httpx), 15 s (aiohttp) or 60 s (balancers); uvicorn would close them after 5 s.
RESTS_S = 4.8, 5.2

JAVA = """
import java.net.URI;
import java.net.http.*;

public class Post {
    public static void main(String[] a) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(a[0])).POST(HttpRequest.BodyPublishers.ofString(a[1])).build();
        var reply = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.print(reply.body());
    }
}
"""


@pytest.mark.slow
def test_no_post_is_lost_on_a_connection_that_rested(bundle_folder: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    rests = [random.Random(n).uniform(*RESTS_S) for n in range(POSTS)]

    async def post_twice(session: "aiohttp.ClientSession", rest_s: float) -> list[int]:
        statuses = []
        for wait_s in (0, rest_s):
            await asyncio.sleep(wait_s)
            async with session.post("/v1/compare", json=PAIR) as reply:
                await reply.read()
                statuses.append(reply.status)
        return statuses

    async def post_all(port: int) -> list[list[int]]:
        pool = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=pool) as session:
            return await asyncio.gather(*(post_twice(session, rest_s) for rest_s in rests))

    with started(bundle_folder) as process:
        assert asyncio.run(post_all(process.port)) == [[200, 200]] * POSTS


@pytest.mark.slow
def test_javas_own_client_can_post(bundle_folder: Path, tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None:
        pytest.skip("no java on this machine")
    source = tmp_path / "Post.java"
    source.write_text(JAVA)
    with started(bundle_folder) as process:
        url = f"http://127.0.0.1:{process.port}/v1/compare"
        command = [java, "-XX:TieredStopAtLevel=1", str(source), url, json.dumps(PAIR)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if "ClassNotFoundException" in done.stderr or "jdk.compiler" in done.stderr:
            pytest.skip("this java cannot compile")
        assert "margin" in json.loads(done.stdout or "{}"), done.stdout + done.stderr
