"""Servers, clients and reference models for the tests of the embedded server."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

VOCAB, CONTEXT = 199, 2048
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    # vLLM's and SGLang's attention want heads of a usual size.
    "served": Qwen2Config(
        **SIZES | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
        tie_word_embeddings=True,
    ),
    "llama": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
}


def make_model(folder: Path, family: str, seed: int) -> Any:
    """A random model with weights large enough that no two tokens are equally likely."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family], attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.12 * noise)
    model.float().eval().save_pretrained(folder)
    return model


class Server:
    """A server process on an inherited socket."""

    def __init__(self, model: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            self.url = f"http://127.0.0.1:{door.getsockname()[1]}"
            command = [sys.executable, "-m", "arealite.engines.embedded", "--model", str(model)]
            command += ["--fd", str(door.fileno()), "--threads", "1", *options]
            self.process = subprocess.Popen(
                command, pass_fds=[door.fileno()], stderr=subprocess.PIPE, text=True
            )

    def ended(self) -> tuple[int, str]:
        """Exit code and log after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log


class Caller:
    """One client session."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=data) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def generate(self, prompt: list[int], **params: Any) -> Any:
        body = {"input_ids": prompt, "sampling_params": params, "return_logprob": True}
        status, reply = await self.post("/generate", body)
        assert status == 200, reply
        return reply

    async def info(self) -> dict[str, Any]:
        async with self.session.get(self.url + "/get_server_info") as response:
            found: dict[str, Any] = await response.json()
            return found

    async def until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for _ in range(2000):
            info = await self.info()
            if reached(info):
                return info
            await asyncio.sleep(0.005)
        raise AssertionError(f"never reached: {info}")

    async def update(self, folder: Path, version: str) -> tuple[int, Any]:
        body = {"model_path": str(folder), "weight_version": version}
        return await self.post("/update_weights_from_disk", body)


def session_with(server: Server, work: Callable[[Caller], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            return await work(Caller(session, server.url))

    return asyncio.run(run())


@torch.inference_mode()
def logprobs_of(model: Any, prompt: list[int], output: list[int], temperature: float) -> Any:
    """Teacher-forced log-probabilities [len(output)] of `output` after `prompt`."""
    ids = torch.tensor([prompt + output])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]


def reported(reply: dict[str, Any]) -> Any:
    return torch.tensor([entry[0] for entry in reply["meta_info"]["output_token_logprobs"]])


def worst(reply: dict[str, Any], model: Any, prompt: list[int], temperature: float = 1.0) -> float:
    wanted = logprobs_of(model, prompt, reply["output_ids"], temperature)
    return float((reported(reply) - wanted).abs().max())


def text_of(token: int) -> str:
    """Two characters; the last of one token and the first of the next make a stop string."""
    return chr(ord("a") + token % 26) + chr(ord("A") + token // 26)


def add_tokenizer(folder: Path) -> None:
    """Gives a model folder a tokenizer whose tokens say text_of."""
    vocabulary = {text_of(token): token for token in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="aA"))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
