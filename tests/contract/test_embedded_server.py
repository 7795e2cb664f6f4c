"""The embedded server as a client sees it: a real process, over HTTP, against transformers."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from embedded_support import (
    CONTEXT,
    VOCAB,
    Caller,
    Server,
    logprobs_of,
    make_model,
    session_with,
    worst,
)

pytest_plugins = ["embedded_fixtures"]


async def check_ragged(caller: Caller, model: Any, count: int) -> None:
    """Ragged requests at once, of every kind of sampling, against the model's own forward."""
    rng = random.Random(5)

    async def one() -> None:
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 70))]
        params: dict[str, Any] = {"max_new_tokens": rng.randint(1, 60), "n": rng.choice([1, 3])}
        params["temperature"] = temperature = rng.choice([0, 0.7, 1.0, 1.3])
        params |= {"top_p": rng.choice([1.0, 0.8]), "top_k": rng.choice([-1, 20])}
        replies = await caller.generate(prompt, **params)
        for reply in replies if isinstance(replies, list) else [replies]:
            assert len(reply["output_ids"]) == params["max_new_tokens"]
            assert reply["meta_info"]["finish_reason"]["type"] == "length"
            assert worst(reply, model, prompt, temperature or 1.0) < 1e-4

    await asyncio.gather(*(one() for _ in range(count)))


def test_logprobs_are_the_models_own_under_the_sampling_temperature(
    server: Server, model: Any
) -> None:
    session_with(server, lambda caller: check_ragged(caller, model, 20))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families(family: str, folders: dict[str, Path]) -> None:
    model = make_model(folders[family], family, seed=1)
    server = Server(folders[family], "--max-running", "8")
    try:
        session_with(server, lambda caller: check_ragged(caller, model, 12))
    finally:
        code, _ = server.ended()
    assert code == 0


def test_greedy_is_what_generate_says(server: Server, model: Any) -> None:
    prompts = [[1, 2, 3], [50] * 20, [9]]

    async def work(caller: Caller) -> Any:
        body = {
            "input_ids": prompts,
            "sampling_params": {"max_new_tokens": 40, "temperature": 0},
        }
        return await caller.post("/generate", body)

    _, replies = session_with(server, work)
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )
        assert reply["output_ids"] == wanted[0, len(prompt) :].tolist()


def test_seeds_reproduce_whatever_else_runs_and_samples_differ(server: Server) -> None:
    async def work(caller: Caller) -> None:
        alone = await caller.generate([7, 8, 9], max_new_tokens=30, sampling_seed=11, n=3)
        noise = [caller.generate([i], max_new_tokens=40, top_k=9) for i in range(12)]
        again, second, *_ = await asyncio.gather(
            caller.generate([7, 8, 9], max_new_tokens=30, sampling_seed=11, n=3),
            caller.generate([7, 8, 9], max_new_tokens=30, sampling_seed=12),
            *noise,
        )
        outputs = [sample["output_ids"] for sample in alone]
        assert outputs == [sample["output_ids"] for sample in again]
        assert outputs[1] == second["output_ids"]  # sample i of n has seed + i
        assert len({tuple(output) for output in outputs}) == 3
        # Tokens that are sent again as prompt go on as if nothing had happened.
        resumed = await caller.generate(
            [7, 8, 9, *outputs[0][:10]], max_new_tokens=20, sampling_seed=11
        )
        assert resumed["output_ids"] == outputs[0][10:]
        unseeded = [await caller.generate([7, 8, 9], max_new_tokens=30) for _ in range(2)]
        assert unseeded[0]["output_ids"] != unseeded[1]["output_ids"]

    session_with(server, work)


def test_stop_tokens_end_a_sample_but_not_before_min_new_tokens(server: Server) -> None:
    stops = list(range(0, VOCAB, 8))

    async def work(caller: Caller) -> None:
        for seed in range(6):
            params = {"max_new_tokens": 60, "stop_token_ids": stops, "sampling_seed": seed}
            free = await caller.generate([3, 4], **params)
            *before, last = free["output_ids"]
            assert not set(before) & set(stops)
            reason = free["meta_info"]["finish_reason"]
            assert reason == {"type": "stop", "matched": last} or len(before) == 59
            barred = await caller.generate([3, 4], min_new_tokens=20, **params)
            assert len(barred["output_ids"]) > 20
            assert not set(barred["output_ids"][:20]) & set(stops)

    session_with(server, work)


def test_probe_gives_teacher_forced_logprobs_also_while_paused(server: Server, model: Any) -> None:
    prompt = list(range(30, 90))

    async def work(caller: Caller) -> Any:
        await caller.post("/pause_generation", {"mode": "retract"})
        body = {"input_ids": prompt, "sampling_params": {"max_new_tokens": 0}}
        status, reply = await caller.post("/generate", body | {"logprob_start_len": 0})
        assert status == 200
        return reply["meta_info"]["input_token_logprobs"]

    first, *rest = session_with(server, work)
    assert first == [None, prompt[0], None]
    assert [token for _, token, _ in rest] == prompt[1:]
    wanted = logprobs_of(model, prompt[:1], prompt[1:], 1.0)
    assert torch.allclose(torch.tensor([x for x, _, _ in rest]), wanted, atol=1e-4)


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    async def work(caller: Caller) -> None:
        task = asyncio.create_task(caller.generate([1], max_new_tokens=2000))
        await caller.until(lambda info: info["running"] == 1)
        task.cancel()
        info = await caller.until(lambda info: info["running"] == 0)
        assert info["waiting"] == 0

    session_with(server, work)


def test_the_queue_is_bounded(server: Server) -> None:
    async def work(caller: Caller) -> None:
        await caller.post("/pause_generation", {"mode": "in_place"})
        body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 2, "n": 48}}
        full = asyncio.create_task(caller.post("/generate", body))
        await caller.until(lambda info: info["waiting"] == 48)
        async with caller.session.post(
            caller.url + "/generate", json={"input_ids": [1]}
        ) as refused:
            assert refused.status == 429
            assert refused.headers["Retry-After"] == "1"
            assert "queue is full" in (await refused.json())["error"]["message"]
        await caller.post("/continue_generation", {})
        assert len((await full)[1]) == 48

    session_with(server, work)


BAD_REQUESTS = [
    (b"{", "not JSON"),
    ([1], "must be a JSON object"),
    ({}, "input_ids must be a non-empty list"),
    ({"text": "hello"}, "text is not supported"),
    ({"input_ids": []}, "input_ids must be a non-empty list"),
    ({"input_ids": [1, "2"]}, "whole numbers"),
    ({"input_ids": [1, VOCAB]}, f"token id {VOCAB} is outside the vocabulary"),
    ({"input_ids": [-1]}, "token id -1 is outside"),
    ({"input_ids": [1], "sampling_params": {"max_new_tokens": CONTEXT}}, "context length of 2048"),
    ({"input_ids": [1], "sampling_params": {"temperature": float("nan")}}, "finite number"),
    ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "temperature is -1"),
    ({"input_ids": [1], "sampling_params": {"temperature": 1e-9}}, "0 (greedy) or at least"),
    ({"input_ids": [1], "sampling_params": {"top_p": 0}}, "top_p"),
    ({"input_ids": [1], "sampling_params": {"max_new_tokens": "many"}}, "whole number"),
    (
        {"input_ids": [1], "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 3}},
        "more than",
    ),
    (
        {
            "input_ids": [1],
            "sampling_params": {"min_new_tokens": 1, "stop_token_ids": list(range(VOCAB))},
        },
        "nothing is left to sample",
    ),
    ({"input_ids": [1], "sampling_params": {"temprature": 1}}, "did you mean temperature"),
    ({"input_ids": [1], "sampling_params": {"n": 49}}, "at most 48 samples"),
    ({"input_ids": [1], "sampling_params": {"stop": ["a", 1]}}, "list of strings"),
    ({"input_ids": [1], "sampling_params": {"stop": [""]}}, "none of them empty"),
    ({"input_ids": [1], "sampling_params": {"stop": "a" * 257}}, "at most 256 characters"),
    ({"input_ids": [1], "sampling_params": {"stop": "a"}}, "has no tokenizer"),
    ({"input_ids": [[1], [2]], "sampling_params": [{}]}, "1 entries for 2 prompts"),
]


def test_bad_requests_get_one_sentence(server: Server) -> None:
    async def work(caller: Caller) -> None:
        for body, sentence in BAD_REQUESTS:
            status, reply = await caller.post("/generate", body)
            message = reply["error"]["message"]
            assert status == 400, message
            assert sentence in message
            assert "\n" not in message
        status, reply = await caller.post("/generate", b"[" * 100_000)
        assert status == 400
        assert "not JSON" in reply["error"]["message"]
        every = {"input_ids": [1], "sampling_params": {"top_k": 2**63, "max_new_tokens": 2}}
        assert (await caller.post("/generate", every))[0] == 200
        status, reply = await caller.post("/generate", b" " * (65 << 20))
        assert status == 413
        assert "bytes" in reply["error"]["message"]
        assert (await caller.post("/no_such_route", {}))[0] == 404

    session_with(server, work)


def test_metrics_health_and_model_info(server: Server) -> None:
    async def work(caller: Caller) -> None:
        found = {}
        for path in ("/health", "/metrics", "/get_model_info"):
            async with caller.session.get(caller.url + path) as response:
                assert response.status == 200
                found[path] = await response.text()
        assert "# TYPE arealite_tokens_generated counter" in found["/metrics"]
        assert json.loads(found["/get_model_info"])["weight_version"] == "0"

    session_with(server, work)


def test_sigterm_answers_with_what_there_is_and_exits_0(
    folders: dict[str, Path], model: Any
) -> None:
    server = Server(folders["qwen2"])

    async def work(caller: Caller) -> Any:
        task = asyncio.create_task(caller.generate([1], max_new_tokens=2000))
        await caller.until(lambda info: info["running"] == 1)
        server.process.send_signal(signal.SIGTERM)
        return await task

    reply = session_with(server, work)
    assert reply["meta_info"]["finish_reason"]["type"] == "abort"
    began = time.monotonic()
    assert server.process.wait(timeout=30) == 0
    assert time.monotonic() - began < 5
    assert server.process.stderr is not None
    server.process.stderr.close()


def test_an_unsupported_model_is_refused_with_exit_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "architectures": []}')
    code, log = 0, ""
    process = subprocess.run(
        [sys.executable, "-m", "arealite.engines.embedded", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    code, log = process.returncode, process.stderr
    assert code == 2
    assert "'gpt2' model; the embedded server runs qwen2, qwen3, llama" in log
    assert "Traceback" not in log


def test_deterministic_means_bit_for_bit_whatever_the_company(
    folders: dict[str, Path], model: Any
) -> None:
    options = ("--deterministic", "--max-running", "7", "--context-length", "160")
    server = Server(folders["qwen2"], *options)
    rng = random.Random(2)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 50))] for _ in range(6)]

    async def one(caller: Caller, index: int) -> Any:
        params = {"max_new_tokens": 60, "sampling_seed": index, "temperature": 0.9}
        reply = await caller.generate(prompts[index], **params)
        return reply["output_ids"], reply["meta_info"]["output_token_logprobs"]

    async def noise(caller: Caller) -> None:
        length = rng.randint(1, 90)
        await caller.generate([5] * length, max_new_tokens=rng.randint(1, 60), top_k=5)

    async def work(caller: Caller) -> None:
        alone = [await one(caller, i) for i in range(len(prompts))]
        assert worst_of(alone) < 1e-4
        for _ in range(4):
            others = [asyncio.create_task(noise(caller)) for _ in range(rng.randint(1, 20))]
            together = await asyncio.gather(*(one(caller, i) for i in range(len(prompts))))
            assert together == alone
            await asyncio.gather(*others)

    def worst_of(replies: list[Any]) -> float:
        differences = [
            torch.tensor([x for x, _, _ in logprobs]) - logprobs_of(model, prompt, output, 0.9)
            for prompt, (output, logprobs) in zip(prompts, replies, strict=True)
        ]
        return max(float(d.abs().max()) for d in differences)

    try:
        session_with(server, work)
    finally:
        code, log = server.ended()
    assert code == 0, log
