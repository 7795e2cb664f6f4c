"""The plan: a pure function from settings and facts to processes, and its report."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml
from plain_config import BASE

from arealite.config import Config, load
from arealite.errors import ConfigError
from arealite.launch.facts import Facts, gather
from arealite.launch.plan import Plan, make_plan

UNKNOWN = Facts(
    cores=4,
    train_rows=None,
    valid_rows=None,
    parameters=None,
    kv_bytes_per_token=None,
    max_positions=None,
)


def config_of(folder: Path, *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return load(path, overrides)


def plan_of(folder: Path, *overrides: str, **facts: int) -> Plan:
    return make_plan(
        config_of(folder, *overrides), dataclasses.replace(UNKNOWN, **facts), "x.yaml", overrides
    )


def option(command: tuple[str, ...], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_trainer_gets_the_file_the_overrides_and_its_threads(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "seed=3", "fileroot=~/out")
    assert plan.trainer.command == (
        sys.executable, "-m", "arealite.main", "--config", "x.yaml", "seed=3", "fileroot=~/out",
        "actor.threads=2",
    )  # fmt: skip
    assert plan.run_folder == Path.home() / "out" / "test" / "trial0"


def test_cores_are_shared_among_what_runs_on_the_cpu(tmp_path: Path) -> None:
    def threads(*overrides: str) -> tuple[str, ...]:
        plan = plan_of(tmp_path, *overrides)
        processes = (plan.trainer, *plan.servers)
        return tuple(p.environment["OMP_NUM_THREADS"] for p in processes)

    assert threads() == ("2", "2")
    assert threads("rollout.n_servers=3") == ("1", "1", "1", "1")
    assert threads("rollout.n_servers=9")[0] == "1"
    assert threads("rollout.device=cuda") == ("4", "1")
    assert threads("actor.device=cuda") == ("1", "4")
    assert threads("actor.threads=3", "rollout.threads=1") == ("3", "1")
    assert threads("mode=sft") == ("4",)


def test_each_process_on_a_gpu_sees_one_of_its_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "actor.device=cuda", "rollout.device=cuda", "rollout.n_servers=2")
    processes = (plan.trainer, *plan.servers)
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in processes] == ["0", "1", "2"]
    assert "CUDA_VISIBLE_DEVICES" not in plan_of(tmp_path).trainer.environment


def test_servers_differ_in_name_and_seed_alone(tmp_path: Path) -> None:
    first, second = plan_of(tmp_path, "rollout.n_servers=2", "seed=7").servers
    assert (first.name, second.name) == ("server-0", "server-1")
    assert option(first.command, "--seed") != option(second.command, "--seed")
    assert option(first.command, "--model") == "models/m"
    assert option(first.command, "--context-length") == str(1024 + 256)
    assert "--port" not in first.command  # the launcher hands a listening socket down


def test_supervised_fine_tuning_needs_no_server(tmp_path: Path) -> None:
    assert plan_of(tmp_path, "mode=sft").servers == ()


def test_a_prepare_step_runs_this_interpreter_and_no_shell(tmp_path: Path) -> None:
    steps = "prepare=[{makes: a, run: python 'two words.py' > x}, {makes: b, run: make b}]"
    first, second = plan_of(tmp_path, steps).prepare
    assert first.command == (sys.executable, "two words.py", ">", "x")
    assert second.command == ("make", "b")


def test_a_prepare_step_with_an_open_quote_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a command line: No closing quotation"):
        plan_of(tmp_path, """prepare=[{makes: a, run: "python 'x"}]""")


def test_a_batch_larger_than_the_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 32, but train\.jsonl has only 31 rows"):
        plan_of(tmp_path, train_rows=31)
    assert plan_of(tmp_path, train_rows=32)


def test_a_sequence_longer_than_the_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1280 tokens"):
        plan_of(tmp_path, max_positions=1279)
    assert plan_of(tmp_path, max_positions=1280)
    assert plan_of(tmp_path, "mode=sft", max_positions=1024)
    held_out = ["mode=sft", "valid_dataset={path: v.jsonl, max_length: 2000}"]
    with pytest.raises(ConfigError, match=r"2000 tokens \(valid_dataset.max_length 2000\)"):
        plan_of(tmp_path, *held_out, max_positions=1999)


def test_an_engine_holds_the_longest_held_out_prompt_too(tmp_path: Path) -> None:
    longer = ["valid_dataset.max_length=2000", "valid_dataset.path=v.jsonl"]
    assert option(plan_of(tmp_path, *longer).servers[0].command, "--context-length") == "2256"
    (server,) = plan_of(tmp_path, longer[0]).servers
    assert option(server.command, "--context-length") == "1280"
    with pytest.raises(ConfigError, match=r"valid_dataset\.max_length 2000 \+"):
        plan_of(tmp_path, *longer, max_positions=2255)


def test_the_largest_seed_still_gives_the_servers_theirs(tmp_path: Path) -> None:
    (server,) = plan_of(tmp_path, f"seed={2**63 - 1}").servers
    assert 0 <= int(option(server.command, "--seed")) < 2**63


def test_no_secret_of_a_prepare_step_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AREALITE_TEST_WHO", "from-the-environment")
    run = (
        "env HF_TOKEN=first fetch --verbose --api-key second --password='third one' "
        "--who ${oc.env:AREALITE_TEST_WHO} --max-tokens 5 --tokenizer t"
    )
    plan = plan_of(tmp_path, f'prepare=[{{makes: a, run: "{run}"}}]')
    assert "second" in plan.prepare[0].command
    shown = (
        "env HF_TOKEN=*** fetch --verbose --api-key *** --password=*** --who *** "
        "--max-tokens 5 --tokenizer t"
    )
    assert plan.prepare[0].shown == shown
    assert f"prepare        a: will be made by: {shown}" in plan.report


def test_the_report_does_the_batch_arithmetic(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, train_rows=100, parameters=1_000_000, kv_bytes_per_token=100)
    report = "\n".join(plan.report)
    assert "32 rows x 4 samples = 128 samples of train.jsonl (100 rows)" in report
    assert "at most 2 versions per trained token: up to 96 episodes" in report
    assert "1024 prompt + 256 new tokens = 1280" in report
    assert "versions       3" in report
    assert "trainer 18.0 MB" in report  # bfloat16, and float32 copies, moments and gradients
    assert "cache 8.2 MB" in report  # 64 sequences of 1280 tokens


def test_what_is_taken_as_a_hub_id_is_told(tmp_path: Path) -> None:
    facts = dataclasses.replace(UNKNOWN, hub_ids=(("actor.path", "models/m"),))
    report = make_plan(config_of(tmp_path), facts, "x.yaml").report
    assert "hub            there is no models/m here: actor.path is taken as a hub id" in report


def test_the_plan_is_a_pure_function(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert plan_of(tmp_path) == plan_of(tmp_path)
    assert sorted(tmp_path.iterdir()) in (before, [tmp_path / "run.yaml"])


def test_facts_are_read_from_rows_and_model(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3}\n')
    model = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 10,
        "tie_word_embeddings": True,
        "max_position_embeddings": 99,
    }
    (tmp_path / "config.json").write_text(json.dumps(model))
    rows = f"train_dataset.path={tmp_path}/rows.jsonl"
    config = config_of(tmp_path, rows, f"actor.path={tmp_path}", "actor.dtype=float32")
    facts = gather(config)
    assert (facts.train_rows, facts.valid_rows, facts.max_positions) == (3, None, 99)
    assert facts.parameters == 2 * (8 * 2 * (2 * 4 + 2 * 2) + 3 * 8 * 16) + 10 * 8
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 2 * 4
    assert gather(config_of(tmp_path, rows, "train_dataset.max_rows=2")).train_rows == 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen/Qwen2.5-3B-Instruct", 3e9), ("x/tiny-135M", 135e6), ("x/model", None)],
)
def test_a_hub_ids_name_tells_the_size(tmp_path: Path, name: str, parameters: float | None) -> None:
    assert gather(config_of(tmp_path, f"actor.path={name}")).parameters == parameters


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\0"])
def test_a_model_folder_with_an_odd_config_is_not_known_yet(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert gather(config_of(tmp_path, f"actor.path={tmp_path}")).max_positions is None


def test_the_report_says_what_the_algorithm_comes_to(tmp_path: Path) -> None:
    lines = plan_of(tmp_path, "actor.algorithm=sapo", "actor.sapo_tau_neg=2").report
    first = next(i for i, line in enumerate(lines) if line.startswith("algorithm "))
    assert lines[first].startswith("algorithm      sapo sets actor.policy_loss=sapo")
    assert "               changed: actor.sapo_tau_neg=2.0 (not 1.05)" in lines
    assert all(len(line) <= 100 for line in lines[first:])
    assert not any(line.startswith("algorithm") for line in plan_of(tmp_path, "mode=sft").report)


def test_a_reference_model_is_looked_for_and_counted_where_it_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, "actor.kl_ctl=0.1", "ref.path=./models/r")
    assert ("ref.path", "./models/r") in gather(config).missing
    report = "\n".join(
        make_plan(config, dataclasses.replace(UNKNOWN, parameters=10**6), "x").report
    )
    assert "reference 2.0 MB" in report
    plain = gather(config_of(tmp_path))
    assert not any(key == "ref.path" for key, _ in (*plain.missing, *plain.hub_ids))
