"""What the tests of real servers share: models, a client of one server, and who computed what."""

from __future__ import annotations

import asyncio
import itertools
import string
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from embedded_support import VOCAB, logprobs_of
from server_kinds import Kind
from server_process import ServerProcess
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from arealite.engines.client import DIALECTS, RemoteEngine
from arealite.telemetry.waits import Waits
from arealite.training.weights import make_probe
from arealite.types import GenerationHyperparameters, ModelRequest, ModelResponse, WeightUpdate

EXACT = 1e-4
"""Largest difference of two log-probabilities in fp32 that rounding explains, in nats."""

PROMPT = (5, 6, 7, 8)


def add_tokenizer(folder: Path) -> None:
    """Letters and pairs of letters, so that a stop string may begin and end within tokens."""
    letters = string.ascii_letters
    pairs = itertools.product(letters, repeat=2)
    merges = list(itertools.islice(pairs, VOCAB - len(letters)))
    texts = [*letters, *map("".join, merges)]
    model = models.BPE({text: token for token, text in enumerate(texts)}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@dataclass
class Served:
    """A running server, the folders it may load and the models in them, and its versions so far.

    published: which of the models each version was.
    """

    kind: Kind
    process: ServerProcess
    folders: Mapping[str, Path]
    models: Mapping[str, Any]
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    published: dict[int, str] = field(default_factory=dict)

    def update(self, name: str, folder: Path | None = None) -> WeightUpdate:
        """The next version is this model; told to be loaded from its folder, or from another."""
        version = next(self.numbers)
        self.published[version] = name
        path = str(folder or self.folders[name])
        return WeightUpdate(version, path, make_probe(self.models[name], VOCAB), VOCAB)

    def worst(self, response: ModelResponse, temperature: float = 1.0) -> float:
        """The largest difference to the trainer's own forward passes, each token by its version."""
        prompt, output = list(response.input_tokens), list(response.output_tokens)
        told = torch.tensor(response.output_logprobs)
        differences = torch.full_like(told, torch.inf)
        for version in set(response.output_versions):
            model = self.models[self.published[version]]
            wanted = logprobs_of(model, prompt, output, temperature)
            of_it = torch.tensor([v == version for v in response.output_versions])
            differences[of_it] = (told - wanted)[of_it].abs()
        return float(differences.max())

    def likeliest(self, response: ModelResponse) -> list[int]:
        """What the trainer's forward finds likeliest after each prefix of this sample."""
        [version] = set(response.output_versions)
        ids = torch.tensor([[*response.input_tokens, *response.output_tokens]])
        with torch.inference_mode():
            logits = self.models[self.published[version]](ids).logits[0]
        found: list[int] = logits[response.input_len - 1 : -1].argmax(-1).tolist()
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        tokenizer = Tokenizer.from_file(str(self.folders["old"] / "tokenizer.json"))
        return str(tokenizer.decode(list(tokens)))

    @asynccontextmanager
    async def engine(self, name: str | None = "old", **options: Any) -> AsyncIterator[RemoteEngine]:
        """A client of this server, which has been given the named model's weights."""
        waits = Waits()
        engine = RemoteEngine(
            [self.process.address], waits, DIALECTS[self.kind.name], decode=self.decode, **options
        )
        try:
            await engine.wait_ready(60.0)
            if name is not None:
                await engine.update_weights(self.update(name))
            yield engine
        finally:
            await engine.aclose()
        assert waits.count() == 0

    def run(self, work: Callable[[RemoteEngine], Awaitable[Any]], **options: Any) -> Any:
        """The work's result, with a client of this server."""

        async def main() -> Any:
            async with asyncio.timeout(200.0), self.engine(**options) as engine:
                return await work(engine)

        return asyncio.run(main())

    async def until_running(self, is_running: bool) -> None:
        """Returns when the server works on something, or on nothing."""
        for _ in range(1000):
            if (await asyncio.to_thread(self.kind.running, self.process) > 0) == is_running:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"the server never came to that: {is_running=}")


def ask(*tokens: int, **gconfig: Any) -> ModelRequest:
    options = {"max_new_tokens": 48, "temperature": 1.0} | gconfig
    return ModelRequest(tokens or PROMPT, GenerationHyperparameters(**options))
