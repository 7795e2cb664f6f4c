"""The servers of a plan: command lines, addresses, keys and who could reach them."""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import socket
import struct
import sys
from pathlib import Path

import pytest
import yaml
from test_launch_plan import BASE, UNKNOWN, option, plan_of

from arealite.config import load
from arealite.errors import ConfigError
from arealite.launch.facts import gather
from arealite.launch.plan import make_plan
from arealite.launch.ports import address_of, bound
from arealite.launch.scratch import Scratch

VLLM = ("rollout.backend=vllm", "rollout.python=/envs/v/bin/python")
SGLANG = ("rollout.backend=sglang", "rollout.python=/envs/s/bin/python")
IP_LOCAL_PORT_RANGE = 51


def args(*words: str) -> str:
    return f"rollout.server_args=[{','.join(map(repr, words))}]"


# --- command lines


def test_vllm_is_started_with_what_the_dialect_needs(tmp_path: Path) -> None:
    [server] = plan_of(tmp_path, *VLLM, "rollout.device=cuda", "actor.device=cuda").servers
    command = server.command
    module = ("-m", "vllm.entrypoints.cli.main", "serve", "models/m")
    assert command[:5] == ("/envs/v/bin/python", *module)
    assert "--enable-scale-out" in command
    assert option(command, "--logprobs-mode") == "processed_logprobs"
    assert option(command, "--max-model-len") == str(1024 + 256 + 8)
    assert option(command, "--max-num-seqs") == "64"
    assert option(command, "--dtype") == "bfloat16"
    assert option(command, "--host") == "127.0.0.1"
    assert "--worker-extension-cls" not in command, "for CPUs alone"
    assert server.environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert (server.listens, server.key, server.is_foreign) == ("port", "VLLM_API_KEY", True)


def test_vllm_on_a_cpu_takes_weights_from_files(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VLLM, kv_bytes_per_token=2**16)
    [server] = plan.servers
    assert option(server.command, "--worker-extension-cls") == "arealite.engines.vllm_cpu.Unpacked"
    assert option(server.command, "--weight-transfer-config") == '{"backend": "file"}'
    assert server.environment["VLLM_CPU_KVCACHE_SPACE"] == "6"  # 64 x 1288 x 64 KiB, rounded up


def test_sglang_is_started_with_what_the_dialect_needs(tmp_path: Path) -> None:
    [server] = plan_of(tmp_path, *SGLANG).servers
    command = server.command
    assert command[:3] == ("/envs/s/bin/python", "-m", "sglang.launch_server")
    assert option(command, "--model-path") == "models/m"
    assert option(command, "--device") == "cpu"
    assert server.environment["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "0"
    assert (server.listens, server.key, server.is_foreign) == ("port", "--config", True)


def test_the_embedded_server_is_started_as_ever(tmp_path: Path) -> None:
    [server] = plan_of(tmp_path).servers
    assert server.command[:3] == (sys.executable, "-m", "arealite.engines.embedded")
    assert (server.listens, server.is_foreign) == ("socket", False)


def test_further_arguments_come_last_and_win(tmp_path: Path) -> None:
    words = ("--dtype", "float16", "--quantization=fp8")
    [server] = plan_of(tmp_path, *VLLM, args(*words)).servers
    assert server.command[-3:] == words


@pytest.mark.parametrize("word", ["--port", "--port=1", "--fd", "--api-key=x"])
def test_what_the_launcher_gives_cannot_be_given_twice(tmp_path: Path, word: str) -> None:
    flag = word.partition("=")[0]
    with pytest.raises(ConfigError, match=f"server_args: leave out {flag}: "):
        plan_of(tmp_path, *VLLM, args(word))


def test_each_server_sees_the_gpus_of_its_own_tensor_parallel_group(tmp_path: Path) -> None:
    gpus = ("rollout.device=cuda", "actor.device=cuda", "rollout.n_servers=2")
    plan = plan_of(tmp_path, *VLLM, *gpus, "rollout.tensor_parallel_size=2")
    seen = [server.environment["CUDA_VISIBLE_DEVICES"] for server in plan.servers]
    assert seen == ["1,2", "3,4"]
    assert option(plan.servers[0].command, "--tensor-parallel-size") == "2"


def test_the_report_shows_every_command_line_and_no_secret(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VLLM, args("--hf-token", "abcdefgh"))
    [line] = [line for line in plan.report if line.startswith("server-0 ")]
    assert "/envs/v/bin/python -m vllm.entrypoints.cli.main serve models/m" in line
    assert "VLLM_SERVER_DEV_MODE=1" in line
    assert "abcdefgh" not in line
    command = plan.servers[0].command
    assert shlex.join(command[:4]) in line


# --- servers that run already


def test_servers_of_ones_own_are_used_and_none_is_launched(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VLLM, "rollout.servers=['127.0.0.1:8000','localhost:8001']")
    assert plan.servers == ()
    assert plan.addresses == ("127.0.0.1:8000", "localhost:8001")
    assert plan.warnings == ()
    assert any("vllm, running already: 127.0.0.1:8000, localhost:8001" in r for r in plan.report)
    assert plan.trainer.environment["OMP_NUM_THREADS"] == "4", "no server shares the cores"


def test_the_environment_may_name_them_and_the_setting_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AREAL_LLM_SERVER_ADDRS", "a:1, b:2,")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))

    def addresses(*overrides: str) -> tuple[str, ...]:
        config = load(path, overrides)
        found = dataclasses.replace(UNKNOWN, servers=gather(config).servers)
        return make_plan(config, found, "x.yaml").addresses

    assert addresses("rollout.backend=sglang") == ("a:1", "b:2")
    assert addresses("rollout.servers=['c:3']") == ("c:3",)
    assert addresses("mode=sft") == ()


def test_new_weights_go_where_other_machines_see_them(tmp_path: Path) -> None:
    assert plan_of(tmp_path).weights is None
    assert plan_of(tmp_path, "rollout.weights_dir=/shared/w").weights == Path("/shared/w")


# --- who could reach them


def test_a_server_that_others_can_reach_is_a_plain_warning(tmp_path: Path) -> None:
    assert plan_of(tmp_path, *VLLM).warnings == ()
    plan = plan_of(tmp_path, *VLLM, args("--host", "0.0.0.0"))
    [warning] = plan.warnings
    assert warning.startswith("server-0 listens on 0.0.0.0: whoever reaches")
    assert "can change its weights" in warning
    assert plan.report[-1] == f"warning        {warning}"
    assert plan.servers[0].host == "0.0.0.0"
    assert "--host 127.0.0.1" not in shlex.join(plan.servers[0].command)
    [guarded] = plan_of(tmp_path, *SGLANG, args("--host=::")).warnings
    assert "if they have the run's key" in guarded


def test_servers_elsewhere_are_a_warning_and_need_a_shared_folder(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *VLLM, "rollout.servers=['gpu7:8000']")
    reach, share = plan.warnings
    assert reach.startswith("gpu7:8000: whoever reaches these servers can change their weights")
    assert "set rollout.weights_dir" in share
    shared = ("rollout.weights_dir=/nfs/w", "rollout.servers=['gpu7:8000']")
    assert len(plan_of(tmp_path, *VLLM, *shared).warnings) == 1


# --- ports


def test_a_port_is_kept_for_the_server_that_is_told_it() -> None:
    """A server that says SO_REUSEADDR gets it; nobody gets it by asking for any free port."""
    with bound("127.0.0.1", listens=False) as door:
        port = door.getsockname()[1]
        assert address_of(door) == f"127.0.0.1:{port}"
        with socket.socket() as other, pytest.raises(OSError) as error:
            other.bind(("127.0.0.1", port))
        assert error.value.errno == errno.EADDRINUSE
        for _ in range(2):  # also its successor
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("127.0.0.1", port))
                server.listen()
                with socket.create_connection(("127.0.0.1", port), timeout=10):
                    accepted, _ = server.accept()
                    accepted.close()


@pytest.mark.parametrize("reuse", [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,)])
def test_a_kept_port_is_given_to_nobody_else(reuse: tuple[int, ...]) -> None:
    with bound("127.0.0.1", listens=False) as door:
        port = door.getsockname()[1]
        both = struct.pack("I", (port + 1) << 16 | port)  # only this port and the next
        for _ in range(50):
            with socket.socket() as other:
                for flag in reuse:
                    other.setsockopt(socket.SOL_SOCKET, flag, 1)
                try:
                    other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, both)
                except OSError:
                    pytest.skip("this kernel has no port range of one socket")
                try:
                    other.bind(("127.0.0.1", 0))
                except OSError:  # the next one happens to be taken
                    continue
                assert other.getsockname()[1] != port


def test_where_a_server_listens_everywhere_it_is_asked_here() -> None:
    with bound("0.0.0.0", listens=True) as door:
        assert address_of(door).startswith("127.0.0.1:")
    with pytest.raises(OSError):
        bound("203.0.113.7", listens=False)


# --- what they are given to read


def test_the_key_is_read_by_its_owner_alone_and_the_package_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    scratch = Scratch(tmp_path / "weights")
    key = scratch.key_file("s3cret")
    assert key.read_text() == "api-key: s3cret\n"
    assert os.stat(key).st_mode & 0o077 == 0
    assert not key.is_relative_to(tmp_path), "others may see the weights' folder"
    first, rest = scratch.python_path().split(os.pathsep)
    assert rest == "/somewhere"
    assert (Path(first) / "arealite" / "launch" / "scratch.py").is_file()
    assert scratch.weights.is_relative_to(tmp_path)
    scratch.remove()
    assert not key.exists()
    assert not scratch.weights.exists()
    assert Path(__file__).is_file(), "a link was removed, and not what it names"
