"""The embedded server against a static loop and `model.generate`, as pairs in one run.

    python benchmarks/engine.py [--rounds 3] [--threads 1] [--out benchmarks/results]

Makes its own random Qwen2 of about 1 M parameters. Every figure is tokens generated per second of
wall clock, prefill included; the server's figures include HTTP, JSON and a client in this process,
so pin the whole to the cores you want to compare: `taskset -c 0 python benchmarks/engine.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvloop
from saving import save
from static_loop import StaticLoop
from transformers import Qwen2Config, Qwen2ForCausalLM

SLOTS, PROMPT, NEW = 64, 64, 128
RAGGED_REQUESTS, RAGGED_LENGTHS = 512, (8, 128)
GROUPS, GROUP_SIZE = 64, 8


@dataclass(frozen=True)
class Work:
    """One request: a prompt, how many tokens to generate, and how many samples of it."""

    prompt: list[int]
    new: int
    n: int = 1

    @property
    def tokens(self) -> int:
        return self.new * self.n

    def body(self) -> bytes:
        params = {"max_new_tokens": self.new, "temperature": 1.0, "n": self.n, "ignore_eos": True}
        value = {"input_ids": self.prompt, "sampling_params": params, "return_logprob": True}
        return json.dumps(value).encode()


class Client:
    """The least HTTP client that does the job, so that it takes little of the server's core."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> Any:
        """One request over a kept-alive connection; the parsed JSON of the reply."""
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length"))
        reply = json.loads(await reader.readexactly(length))
        self._idle.append((reader, writer))
        if b" 200 " not in lines[0]:
            raise RuntimeError(f"{path}: {reply}")
        return reply

    async def run(self, works: Sequence[Work], concurrency: int) -> float:
        """Tokens per second over all works, at most `concurrency` requests at a time."""
        gate = asyncio.Semaphore(concurrency)

        async def one(work: Work) -> int:
            async with gate:
                reply = await self.post("/generate", work.body())
            samples = reply if isinstance(reply, list) else [reply]
            return sum(len(s["output_ids"]) for s in samples)

        began = time.perf_counter()
        counts = await asyncio.gather(*map(one, works))
        taken = time.perf_counter() - began
        assert sum(counts) == sum(w.tokens for w in works)
        return sum(counts) / taken


def tiny_model() -> Qwen2ForCausalLM:
    """A random Qwen2 with about 0.9 M parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).float().eval()


def by_generate(model: Qwen2ForCausalLM, works: Sequence[Work]) -> float:
    """Tokens per second of `model.generate` in batches of SLOTS; each runs to its longest row.

    Only the tokens that were asked for count. It returns no log-probabilities.
    """
    flat = [work for work in works for _ in range(work.n)]
    began = time.perf_counter()
    for start in range(0, len(flat), SLOTS):
        batch = flat[start : start + SLOTS]
        ids = torch.tensor([work.prompt for work in batch])
        longest = max(work.new for work in batch)
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=longest,
                max_new_tokens=longest,
                pad_token_id=0,
            )
    return sum(work.tokens for work in works) / (time.perf_counter() - began)


def workloads() -> dict[str, list[Work]]:
    """The same for every engine and round."""
    rng = random.Random(0)

    def prompt() -> list[int]:
        return [rng.randrange(1024) for _ in range(PROMPT)]

    lengths = [rng.randint(*RAGGED_LENGTHS) for _ in range(RAGGED_REQUESTS)]
    groups = [Work(prompt(), rng.randint(*RAGGED_LENGTHS), GROUP_SIZE) for _ in range(GROUPS)]
    return {
        "equal": [Work(prompt(), NEW) for _ in range(2 * SLOTS)],
        "ragged": [Work(prompt(), length) for length in lengths],
        "groups": groups,
        "separate": [Work(g.prompt, g.new) for g in groups for _ in range(g.n)],
    }


async def measure_round(
    client: Client, model: Qwen2ForCausalLM, loop: StaticLoop
) -> dict[str, float]:
    """One figure per name, all tokens/s."""
    works = workloads()
    equal = works["equal"]
    found: dict[str, float] = {}
    for concurrency in (1, 16, SLOTS):
        few = equal[: 2 * concurrency]
        found[f"server, {concurrency} at once"] = await client.run(few, concurrency)
        found[f"static loop, {concurrency}"] = loop.measure(few[:concurrency], NEW)
    found["generate, 64"] = by_generate(model, equal[:SLOTS])
    found["server, ragged"] = await client.run(works["ragged"], RAGGED_REQUESTS)
    found["server, ragged, 64 at once"] = await client.run(works["ragged"], SLOTS)
    found["generate, ragged"] = by_generate(model, works["ragged"])
    found["server, 64 prompts x 8, n-form"] = await client.run(works["groups"], GROUPS)
    found["server, 64 prompts x 8, separate"] = await client.run(works["separate"], 512)
    found["generate, 64 prompts x 8"] = by_generate(model, works["groups"])
    return found


PAIRS = (
    ("server, 1 at once", "static loop, 1"),
    ("server, 16 at once", "static loop, 16"),
    ("server, 64 at once", "static loop, 64"),
    ("server, 64 at once", "generate, 64"),
    ("server, ragged", "generate, ragged"),
    ("server, ragged, 64 at once", "generate, ragged"),
    ("server, 64 prompts x 8, n-form", "generate, 64 prompts x 8"),
    ("server, 64 prompts x 8, separate", "generate, 64 prompts x 8"),
)


def report(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Prints the table; medians over the rounds, ratios taken within each round."""
    ratios = {f"{a} / {b}": [found[a] / found[b] for found in rounds] for a, b in PAIRS}
    print(f"{'tokens/s, median of ' + str(len(rounds)):44s}{'':>10s}")
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in medians.items():
        print(f"  {name:60s}{value:10.0f}")
    print("ratio, median (lowest to highest)")
    for name, values in ratios.items():
        print(
            f"  {name:60s}{statistics.median(values):10.2f} ({min(values):.2f}-{max(values):.2f})"
        )
    return {
        "tokens_per_s": medians,
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "rounds": list(rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for engine-<date>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = tiny_model()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as door:
        model.save_pretrained(folder)
        command = [sys.executable, "-m", "arealite.engines.embedded", "--model", folder]
        command += ["--fd", str(door.fileno()), "--threads", str(args.threads)]
        server = subprocess.Popen(command, pass_fds=[door.fileno()])
        try:
            rounds = uvloop.run(_rounds(door.getsockname()[1], model, args.rounds))
        finally:
            server.terminate()
            server.wait()
    result = report(rounds)
    described = {"parameters": model.num_parameters(), "threads": args.threads, **result}
    save(args.out, "engine", described)


async def _rounds(port: int, model: Qwen2ForCausalLM, count: int) -> list[dict[str, float]]:
    client, loop = Client(port), StaticLoop(model, SLOTS, PROMPT + NEW)
    await client.run(workloads()["ragged"][:SLOTS], SLOTS)  # both warm
    loop.measure([Work([1] * PROMPT, 8)] * SLOTS, 8)
    return [await measure_round(client, model, loop) for _ in range(count)]


if __name__ == "__main__":
    main()
