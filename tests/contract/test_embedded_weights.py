"""The embedded server while its weights change: spans, retract, in place, aborts, refusals."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from embedded_support import (
    Caller,
    Server,
    logprobs_of,
    reported,
    session_with,
    worst,
)
from safetensors.torch import load_file, save_file

pytest_plugins = ["embedded_fixtures"]


async def interrupted(
    caller: Caller, prompt: list[int], mode: str, folder: Path, **params: Any
) -> Any:
    """A generation whose weights change midway."""
    before = (await caller.info())["tokens_generated"]
    task = asyncio.create_task(caller.generate(prompt, max_new_tokens=700, **params))
    await caller.until(lambda info: info["tokens_generated"] > before + 100)
    await caller.post("/pause_generation", {"mode": mode})
    assert (await caller.update(folder, "1"))[0] == 200
    await caller.post("/continue_generation", {})
    return await task


def test_retract_recomputes_the_prefix_and_spans_split_exactly(
    server: Server, model: Any, new_model: Any, folders: dict[str, Path]
) -> None:
    prompt = [5, 6, 7]

    async def work(caller: Caller) -> Any:
        return await interrupted(caller, prompt, "retract", folders["new"], n=3)

    for reply in session_with(server, work):
        old, new = reply["meta_info"]["weight_versions"]
        assert (old["version"], old["start"], new["version"], new["end"]) == ("0", 0, "1", 700)
        cut = old["end"]
        assert cut == new["start"]
        assert reply["meta_info"]["weight_version"] == "1"
        output, got = reply["output_ids"], reported(reply)
        by_old, by_new = (logprobs_of(m, prompt, output, 1.0) for m in (model, new_model))
        assert (got - by_old)[:cut].abs().max() < 1e-4
        assert (got - by_new)[cut:].abs().max() < 1e-4
        assert (got - by_old)[cut:].abs().max() > 0.1  # the models do differ


def test_in_place_keeps_the_old_keys_and_values(
    server: Server, model: Any, new_model: Any, folders: dict[str, Path]
) -> None:
    prompt = [5, 6, 7]

    async def work(caller: Caller) -> Any:
        return await interrupted(caller, prompt, "in_place", folders["new"])

    reply = session_with(server, work)
    cut = reply["meta_info"]["weight_versions"][0]["end"]
    ids = torch.tensor([prompt + reply["output_ids"]])
    kept = len(prompt) + cut - 1  # the last token before the cut is fed with the new weights
    with torch.inference_mode():
        cache = model(ids[:, :kept], use_cache=True).past_key_values
        logits = new_model(ids[:, kept:-1], past_key_values=cache).logits[0].float()
    wanted = logits.log_softmax(-1).gather(-1, ids[0, kept + 1 :, None])[:, 0]
    assert (reported(reply)[cut:] - wanted).abs().max() < 1e-4


def test_update_without_a_pause_and_a_new_name_for_the_version(
    server: Server, folders: dict[str, Path], new_model: Any
) -> None:
    async def work(caller: Caller) -> Any:
        before = (await caller.info())["tokens_generated"]
        task = asyncio.create_task(caller.generate([1], max_new_tokens=900))
        await caller.until(lambda info: info["tokens_generated"] > before + 100)
        assert (await caller.update(folders["new"], "1"))[0] == 200
        reply = await task
        await caller.post("/update_weight_version", {"new_version": "1b"})
        fresh = await caller.generate([1, 2], max_new_tokens=5)
        return reply, fresh

    reply, fresh = session_with(server, work)
    assert [span["version"] for span in reply["meta_info"]["weight_versions"]] == ["0", "1"]
    assert fresh["meta_info"]["weight_versions"] == [{"version": "1b", "start": 0, "end": 5}]
    assert worst(fresh, new_model, [1, 2]) < 1e-4


def test_aborts_return_what_there_is(server: Server, model: Any) -> None:
    async def work(caller: Caller) -> None:
        before = (await caller.info())["tokens_generated"]
        params = {"max_new_tokens": 1500, "n": 2}
        body = {"input_ids": [1, 2], "sampling_params": params, "rid": "mine"}
        mine = asyncio.create_task(caller.post("/generate", body))
        other = asyncio.create_task(caller.generate([3, 4], max_new_tokens=1500))
        await caller.until(lambda info: info["tokens_generated"] > before + 60)
        assert (await caller.post("/abort_request", {"rid": "mine"}))[0] == 200
        _, replies = await mine
        assert not other.done()
        for reply in replies:
            assert reply["meta_info"]["finish_reason"]["type"] == "abort"
            assert 0 < len(reply["output_ids"]) < 1500
            assert worst(reply, model, [1, 2]) < 1e-4
        await caller.post("/pause_generation", {"mode": "abort"})
        assert (await other)["meta_info"]["finish_reason"]["type"] == "abort"
        queued = asyncio.create_task(caller.generate([3, 4], max_new_tokens=4))
        await caller.until(lambda info: info["waiting"] == 1)  # while paused, requests wait
        await caller.post("/continue_generation", {})
        assert len((await queued)["output_ids"]) == 4

    session_with(server, work)


def test_a_bad_folder_changes_nothing(
    server: Server, model: Any, folders: dict[str, Path], new_model: Any
) -> None:
    tensors = load_file(folders["new"] / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    broken = folders["broken"]

    async def work(caller: Caller) -> None:
        for change, sentence in (
            ({name: None}, f"{name} is missing"),
            ({name: torch.zeros(3, 3)}, "has shape (3, 3)"),
            ({"extra.weight": torch.zeros(1)}, "not part of"),
        ):
            shutil.rmtree(broken, ignore_errors=True)
            broken.mkdir()
            changed = {k: v for k, v in (tensors | change).items() if v is not None}
            save_file(changed, broken / "model.safetensors")
            status, reply = await caller.update(broken, "1")
            assert (status, reply["success"]) == (400, False)
            assert sentence in reply["message"]
        assert (await caller.update(broken / "nowhere", "1"))[0] == 400
        reply = await caller.generate([1, 2], max_new_tokens=10)
        assert reply["meta_info"]["weight_version"] == "0"
        assert worst(reply, model, [1, 2]) < 1e-4

    session_with(server, work)


@pytest.mark.parametrize(
    ("version", "kind"),
    [({"v": 1}, "an object"), ([1], "a list"), (True, "true or false"), (1.5, "a fraction")],
)
def test_a_version_is_a_string_or_a_whole_number(
    server: Server, folders: dict[str, Path], version: Any, kind: str
) -> None:
    async def work(caller: Caller) -> None:
        for path, body in (
            (
                "/update_weights_from_disk",
                {"model_path": str(folders["qwen2"]), "weight_version": version},
            ),
            ("/update_weight_version", {"new_version": version}),
        ):
            status, reply = await caller.post(path, body)
            name = list(body)[-1]
            assert status == 400
            assert reply["error"]["message"] == (
                f"{name} must be a string or a whole number, not {kind}"
            )
        assert (await caller.info())["weight_version"] == "0"
        body = {"model_path": str(folders["qwen2"]), "weight_version": 7}
        assert (await caller.post("/update_weights_from_disk", body))[0] == 200
        assert (await caller.info())["weight_version"] == "7"

    session_with(server, work)


def test_weights_that_are_not_finite_cost_the_request_and_not_the_server(
    server: Server, model: Any, folders: dict[str, Path]
) -> None:
    tensors = load_file(folders["qwen2"] / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    tensors["model.layers.0.input_layernorm.weight"][0] = float("inf")
    nan = folders["broken"].parent / "nan"
    nan.mkdir()
    save_file(tensors, nan / "model.safetensors")

    async def work(caller: Caller) -> None:
        await caller.update(nan, "1")
        body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 9, "n": 4}}
        status, reply = await caller.post("/generate", body)
        assert (status, reply["error"]["message"]) == (500, "the logits are not finite")
        await caller.update(folders["qwen2"], "2")
        for reply in await caller.generate([4], max_new_tokens=9, n=8):
            assert worst(reply, model, [4]) < 1e-4

    session_with(server, work)
