"""vLLM's wire format: bodies, replies that are believed and replies that are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from arealite.engines import vllm
from arealite.engines.dialect import Abilities, Answer, told_version
from arealite.errors import EngineError
from arealite.types import GenerationHyperparameters, Probe, WeightUpdate

MARK = "mark-"
UPDATE = WeightUpdate(7, "/w/v7", Probe((1, 2, 3), (-0.5, -1.5), 0.01))


def asked(n: int = 1, **gconfig: Any) -> dict[str, Any]:
    options = {"max_new_tokens": 10} | gconfig
    return vllm.generate_body([1, 2], GenerationHyperparameters(**options), "mark-r-0", n)


def choice(tokens: list[int], index: int = 0, **fields: Any) -> dict[str, Any]:
    """Token t has the log-probability -t / 10, sampled by version 3."""
    content = [{"token_id": t, "logprob": -t / 10, "rank": 1, "top_logprobs": []} for t in tokens]
    return {
        "index": index,
        "token_ids": tokens,
        "logprobs": {"content": content},
        "finish_reason": "stop",
        "stop_reason": None,
        "weight_versions": [{"version": "3", "start": 0, "end": len(tokens)}],
    } | fields


def reply(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    name = "generate-tokens-mark-r-0"
    return {"request_id": name, "choices": list(choices), "usage": usage} | fields


# --- requests


def test_the_body_says_everything_that_the_server_would_choose_itself() -> None:
    gconfig = GenerationHyperparameters(
        max_new_tokens=20, min_new_tokens=8, temperature=0.5, top_p=0.9, top_k=-1,
        stop_token_ids=(5, 6), stop=("END",), seed=11,
    )  # fmt: skip
    assert vllm.generate_body([1, 2, 3], gconfig, "r", 4, index=2) == {
        "token_ids": [1, 2, 3],
        "request_id": "r",
        "sampling_params": {
            "n": 4,
            "max_tokens": 20,
            "min_tokens": 8,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 0,
            "stop_token_ids": [5, 6],
            "logprobs": 0,
            "detokenize": True,
            "stop": ["END"],
            "skip_special_tokens": False,
            "seed": 13,
        },
    }


def test_greedy_is_temperature_0_and_without_strings_there_is_no_text() -> None:
    params = asked(greedy=True, temperature=0.7)["sampling_params"]
    assert (params["temperature"], params["detokenize"]) == (0.0, False)
    assert "seed" not in params
    assert "stop" not in params


def test_what_is_left_of_a_sample_has_random_numbers_of_its_own() -> None:
    gconfig = GenerationHyperparameters(max_new_tokens=20, min_new_tokens=8, seed=11)

    def seed(done: int, index: int) -> int:
        body = vllm.generate_body([1], gconfig, "r", 1, done, index)["sampling_params"]
        assert (body["max_tokens"], body["min_tokens"]) == (20 - done, max(0, 8 - done))
        found: int = body["seed"]
        return found

    assert seed(0, 1) == 12
    seeds = {seed(done, index) for done in (0, 1, 5, 19) for index in range(4)}
    assert len(seeds) == 16
    assert max(seeds) < vllm.SEEDS
    assert seed(5, 2) == seed(5, 2)


def test_a_seed_leaves_room_for_the_index_that_the_server_adds() -> None:
    body = asked(n=8, seed=(1 << 63) - 1)
    assert body["sampling_params"]["seed"] + 8 < 1 << 63


# --- replies


def test_samples_come_in_the_order_of_their_index_with_the_versions_of_their_tokens() -> None:
    spans = [{"version": "default", "start": 0, "end": 1}, {"version": "3", "start": 1, "end": 3}]
    given = reply(choice([9], 1, finish_reason="length"), choice([4, 5, 6], weight_versions=spans))
    first, second = vllm.parse_generate(given, asked(2), MARK, None)
    assert (first.tokens, first.versions, first.finish) == ([4, 5, 6], [0, 3, 3], "stop")
    assert first.logprobs == pytest.approx([-0.4, -0.5, -0.6])
    assert (second.tokens, second.versions, second.finish) == ([9], [3], "length")
    assert first.versions_from == second.versions_from == "server"


def test_an_aborted_sample_has_what_it_had() -> None:
    [part] = vllm.parse_generate(reply(choice([4], finish_reason="abort")), asked(), MARK, None)
    assert (part.tokens, part.finish) == ([4], "abort")
    nothing = choice([], finish_reason="abort", logprobs=None, weight_versions=None)
    [empty] = vllm.parse_generate(reply(nothing), asked(), MARK, 2)
    assert (empty.tokens, empty.versions_from) == ([], "server")


def test_a_server_without_spans_is_believed_as_old_as_its_last_probe() -> None:
    [part] = vllm.parse_generate(reply(choice([4], weight_versions=None)), asked(), MARK, 2)
    assert (part.versions, part.versions_from) == ([2], "client")


WRONG: list[tuple[Callable[[Any], Any], str]] = [
    (lambda r: r["choices"].clear(), "answered 0 samples, 1 were asked for"),
    (lambda r: r["choices"][0].update(index=1), r"numbered its 1 samples \[1\]"),
    (lambda r: r["choices"][0].pop("token_ids"), "malformed: KeyError"),
    (lambda r: r["choices"][0].update(token_ids=[4]), "end at token 2 of 1"),
    (lambda r: r["choices"][0]["logprobs"]["content"].pop(), "2 tokens, 1 log-prob"),
    (lambda r: r["choices"][0].update(token_ids=[4, 6]), "of other tokens"),
    (lambda r: r["choices"][0].update(token_ids=[4, -5]), "no whole number"),
    (lambda r: r["choices"][0].update(finish_reason="repetition"), "unknown reason: repetition"),
    (lambda r: logprob(r, -9999.0), "not finite"),
    (lambda r: logprob(r, float("nan")), "not finite"),
    (lambda r: logprob(r, 0.1), "above 0"),
    (lambda r: logprob(r, None), "malformed: TypeError"),
    (lambda r: span(r, start=1), "leave a gap"),
    (lambda r: span(r, end=3), "end at token 3 of 2"),
    (lambda r: span(r, end=1), "2 tokens, 2 log-probabilities and 1 versions"),
    (lambda r: span(r, version="main"), "malformed: ValueError"),
    (lambda r: r.update(request_id="generate-tokens-mark-r-9"), "answered the request"),
    (lambda r: r["usage"].update(prompt_tokens=3), "a prompt of 3 tokens, sent were 2"),
]


def logprob(given: Any, value: Any) -> None:
    given["choices"][0]["logprobs"]["content"][1]["logprob"] = value


def span(given: Any, **fields: Any) -> None:
    given["choices"][0]["weight_versions"][0].update(fields)


@pytest.mark.parametrize(("spoil", "words"), WRONG)
def test_a_reply_that_cannot_be_true_is_an_error(spoil: Callable[[Any], Any], words: str) -> None:
    given = reply(choice([4, 5]))
    vllm.parse_generate(copy.deepcopy(given), asked(), MARK, None)
    spoil(given)
    with pytest.raises(EngineError, match=words):
        vllm.parse_generate(given, asked(), MARK, None)


@pytest.mark.parametrize("given", [None, [], "text", {}, {"request_id": "mark-r-0"}])
def test_anything_else_is_malformed(given: Any) -> None:
    with pytest.raises(EngineError, match="malformed"):
        vllm.parse_generate(given, asked(), MARK, None)
    with pytest.raises(EngineError, match="malformed"):
        vllm.parse_probe(given, vllm.probe_body([1, 2], "mark-r-0"), MARK, 0)


def test_more_tokens_than_asked_for_are_an_error() -> None:
    with pytest.raises(EngineError, match="sampled 2 tokens, at most 1"):
        vllm.parse_generate(reply(choice([4, 5])), asked(max_new_tokens=1), MARK, None)


# --- probes and versions


def probed(*entries: Any) -> dict[str, Any]:
    return reply(choice([8]), prompt_logprobs=[None, *entries])


def test_a_probe_is_the_prompts_own_log_probabilities() -> None:
    body = vllm.probe_body([1, 2], "mark-r-0")
    assert body["sampling_params"]["prompt_logprobs"] == 0
    assert body["sampling_params"]["max_tokens"] == 1
    entries = {"2": {"logprob": -0.5, "rank": 4, "decoded_token": None}, "9": {"logprob": -0.1}}
    assert vllm.parse_probe(probed(entries), body, MARK, 3) == [-0.5]


def test_a_probe_of_another_version_or_of_other_tokens_is_an_error() -> None:
    body = vllm.probe_body([1, 2], "mark-r-0")
    with pytest.raises(EngineError, match="answers the probe as version 3"):
        vllm.parse_probe(probed({"2": {"logprob": -0.5}}), body, MARK, 4)
    with pytest.raises(EngineError, match="other tokens"):
        vllm.parse_probe(probed({"5": {"logprob": -0.5}}), body, MARK, 3)
    assert vllm.parse_probe(probed(), body, MARK, 3) == [], "too few: they differ by inf"


def test_the_version_is_told_by_weight_info() -> None:
    assert told_version({"weight_version": "default"}) == 0
    assert told_version({"weight_version": "12"}) == 12
    assert told_version({"weight_version": "main"}) is None
    assert told_version([]) is None


def test_counters_are_summed_over_the_engines_of_a_server() -> None:
    text = (
        "# HELP vllm:num_requests_running Number of requests.\n"
        'vllm:num_requests_running{engine="0",model_name="a b"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="a b"} 3.0\n'
        'vllm:generation_tokens_total{engine="0"} 1.5e+03\n'
        'vllm:num_requests_waiting{engine="0"} oops\n'
        "another 7\n"
    )
    assert vllm.parse_counters(text) == {"running": 5.0, "tokens_generated": 1500.0}
    assert vllm.parse_counters({"detail": "Not Found"}) == {}


# --- updates


def test_an_update_by_file_is_a_session_between_pause_and_resume() -> None:
    steps = vllm.update_steps(UPDATE, "retract", Abilities(loader="file transfer"))
    assert [(step.path, step.body) for step in steps] == [
        ("/pause?mode=keep&clear_cache=true", {}),
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"path": "/w/v7"}}),
        ("/finish_weight_update", {"weight_version": "7"}),
        ("/resume", {}),
    ]


def test_elsewhere_the_folder_is_reloaded_and_the_version_set_afterwards() -> None:
    steps = vllm.update_steps(UPDATE, "in_place", Abilities(loader="reload_weights"))
    kwargs = {"weights_path": "/w/v7"}
    assert [(step.path, step.body) for step in steps] == [
        ("/pause?mode=keep&clear_cache=false", {}),
        ("/collective_rpc", {"method": "reload_weights", "kwargs": kwargs}),
        ("/update_weight_version", {"new_version": "7"}),
        ("/resume", {}),
    ]


# --- abilities


INFO = {
    "vllm_config": {
        "model_config": {"logprobs_mode": "processed_logprobs"},
        "scheduler_config": {"max_num_seqs": 64},
        "weight_transfer_config": {"backend": "file"},
    }
}
VERSION = Answer(200, {"version": "0.32.0"})
WEIGHTS = Answer(200, {"weight_version": "default"})
REFUSES_EMPTY = Answer(400, {"error": {"message": "token_ids: Field required"}})


def test_a_server_tells_what_it_can_do() -> None:
    found = vllm.abilities([VERSION, WEIGHTS, REFUSES_EMPTY, Answer(200, INFO)])
    assert found == Abilities("vLLM 0.32.0", "processed", 64, loader="file transfer")
    raw = {"vllm_config": {"model_config": {"logprobs_mode": "raw_logprobs"}}}
    found = vllm.abilities([VERSION, WEIGHTS, REFUSES_EMPTY, Answer(200, raw)])
    assert found == Abilities("vLLM 0.32.0", "raw", None, loader="reload_weights")


@pytest.mark.parametrize(
    ("weights", "generate", "mode", "words"),
    [
        (Answer(404), REFUSES_EMPTY, "raw_logprobs", "VLLM_SERVER_DEV_MODE=1"),
        (WEIGHTS, Answer(403), "raw_logprobs", "--enable-scale-out"),
        (WEIGHTS, Answer(404), "raw_logprobs", "0.32 or newer"),
        (WEIGHTS, Answer(401), "raw_logprobs", "AREALITE_SERVER_KEY"),
        (WEIGHTS, REFUSES_EMPTY, "raw_logits", "it reports logits"),
    ],
)
def test_what_it_lacks_is_said_with_the_remedy(
    weights: Answer, generate: Answer, mode: str, words: str
) -> None:
    info = {"vllm_config": {"model_config": {"logprobs_mode": mode}}}
    found = vllm.abilities([VERSION, weights, generate, Answer(200, info)])
    assert words in found.lacks


def test_a_server_that_does_not_tell_what_it_means_is_not_used() -> None:
    nothing = Answer(404, "Not Found")
    found = vllm.abilities([nothing, WEIGHTS, REFUSES_EMPTY, nothing])
    assert (found.meaning, found.most_samples) == (None, None)
    assert "does not tell what its log-probabilities mean" in found.lacks
    assert "of unknown meaning" in str(found)
