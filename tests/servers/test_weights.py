"""Real servers while their weights change: exact spans, and no wrong weights unseen."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from server_kinds import TIMEOUT_S
from server_support import EXACT, Served, ask

from arealite.engines.client import RemoteEngine
from arealite.errors import EnginesExhausted

pytestmark = pytest.mark.timeout(TIMEOUT_S)

LONG = 1500

Tensors = dict[str, torch.Tensor]


def change_in_mid_generation(served: Served) -> None:
    """Publishes twice while samples grow, and compares each token with its own version."""
    worst: list[float] = []

    async def work(engine: RemoteEngine) -> Any:
        requests = [ask(max_new_tokens=LONG), ask(max_new_tokens=LONG, greedy=True)]
        tasks = [asyncio.create_task(engine.agenerate(request)) for request in requests]
        for name in ("new", "old"):
            await served.until_running(is_running=True)
            worst.append(await engine.update_weights(served.update(name)))
        assert not any(task.done() for task in tasks)
        return await asyncio.gather(*tasks)

    for response in served.run(work):
        versions = list(response.output_versions)
        assert versions == sorted(versions)
        assert len(set(versions)) >= 2
        assert response.versions_from == "server"
        assert served.worst(response) <= EXACT
    assert max(worst) <= EXACT


def test_each_token_tells_by_which_weights_it_was(served: Served) -> None:
    change_in_mid_generation(served)


def test_what_the_models_say_differs(served: Served) -> None:
    """Or the tests above and below could not fail."""
    response = served.run(lambda engine: engine.agenerate(ask()))
    [version] = set(response.output_versions)
    served.published[version] = "new"
    assert served.worst(response) > 100 * EXACT


def kept_embedding(old: Tensors, new: Tensors) -> Tensors:
    return new | {name: old[name] for name in old if "embed_tokens" in name}


def kept_layers(old: Tensors, new: Tensors) -> Tensors:
    return old | {name: new[name] for name in new if "embed_tokens" in name}


def one_stale_tensor(old: Tensors, new: Tensors) -> Tensors:
    name = "model.layers.2.mlp.down_proj.weight"
    return new | {name: old[name]}


def a_tensor_lost(old: Tensors, new: Tensors) -> Tensors:
    return {name: tensor for name, tensor in new.items() if "layers.1.self_attn.q" not in name}


def rounded(old: Tensors, new: Tensors) -> Tensors:
    return {name: tensor.bfloat16() for name, tensor in new.items()}


def skipped(old: Tensors, new: Tensors) -> Tensors:
    return old


def refused(served: Served, folder: Path) -> str:
    """Why the server was not given the new model from this folder."""

    async def work(engine: RemoteEngine) -> str:
        with pytest.raises(EnginesExhausted) as caught:
            await engine.update_weights(served.update("new", folder))
        assert [server.state for server in engine.servers] == ["quarantined"]
        return str(caught.value)

    reason: str = served.run(work)
    assert "did not take weights version" in reason
    return reason


@pytest.mark.parametrize(
    "fault",
    [skipped, kept_embedding, kept_layers, one_stale_tensor, a_tensor_lost, rounded],
    ids=lambda fault: fault.__name__,
)
def test_wrong_weights_serve_nothing(
    served: Served, tmp_path: Path, fault: Callable[[Tensors, Tensors], Tensors]
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(served.folders["new"], folder)
    old, new = (load_file(served.folders[name] / "model.safetensors") for name in ("old", "new"))
    wrong = {name: tensor.contiguous() for name, tensor in fault(old, new).items()}
    save_file(wrong, folder / "model.safetensors", {"format": "pt"})
    refused(served, folder)
    response = served.run(lambda engine: engine.agenerate(ask()))  # and the right ones do
    assert served.worst(response) <= EXACT


def test_a_folder_that_is_not_there_is_refused_in_the_servers_words(
    served: Served, tmp_path: Path
) -> None:
    said = r"answered [45]\d\d to POST \S+: .*(nowhere|holds no safetensors)"  # vLLM hides paths
    assert re.search(said, refused(served, tmp_path / "nowhere"))
    response = served.run(lambda engine: engine.agenerate(ask()))
    assert served.worst(response) <= EXACT
