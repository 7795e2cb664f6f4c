"""The launcher with real processes: what it says, what it ends, and what it leaves behind."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typos import TWENTY

from arealite.errors import ArealiteError, ConfigError, EnginesExhausted, Killed, Stall
from arealite.launch import command
from arealite.launch.local import Child, Supervisor
from arealite.launch.plan import Plan, Prepare, Process

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DEADLINE_S = 30.0

MODE_SFT = "mode: sft\nexperiment_name: e\nactor: {path: m}\ntrain_dataset: {path: t.jsonl}\n"


def python(text: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(text), *arguments)


def plan_of(folder: Path, trainer: str, *servers: str) -> Plan:
    return Plan(
        run_folder=folder / "run",
        prepare=(),
        servers=tuple(Process(f"server-{i}", python(text)) for i, text in enumerate(servers)),
        trainer=Process("trainer", python(trainer)),
        report=(),
    )


def step(makes: Path, command: tuple[str, ...], timeout_s: float) -> Prepare:
    return Prepare(makes, command, timeout_s, "the step's command")


def rows(folder: Path) -> None:
    """What MODE_SFT reads: one batch."""
    (folder / "t.jsonl").write_text("{}\n" * 32)


def eventually(what: Callable[[], bool], name: str) -> None:
    """Waits for a condition; only what never comes true takes long."""
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end, f"{name} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.02)


def watched(supervisor: Supervisor) -> None:
    trainer = supervisor.start()
    eventually(lambda: supervisor.watch(trainer), "the end of the trainer")


WAIT = "import time; time.sleep(60)"
KILLED = "import os; print('x', flush=True); os.kill(os.getpid(), {})"


# --- the supervisor


def test_a_trainer_that_ends_well_ends_the_run_and_its_servers(tmp_path: Path) -> None:
    with Supervisor(plan_of(tmp_path, "print('trained')", WAIT), grace_s=5) as supervisor:
        watched(supervisor)
        children: list[Child] = supervisor._children
        assert [child.process.poll() for child in children] == [None, 0]
    assert children[0].process.returncode == -signal.SIGTERM
    assert (tmp_path / "run/logs/trainer.log").read_text() == "trained\n"


@pytest.mark.parametrize(
    ("trainer", "code", "says"),
    [
        ("import sys; print('arealite: NaN in the loss'); sys.exit(7)", 7, "NaN in the loss"),
        ("import sys; print('arealite: asked to'); sys.exit(75)", 75, "asked to"),
        ("import sys; print('no sentence'); sys.exit(3)", 3, "trainer | no sentence"),
        ("raise SystemExit(3)", 3, "  trainer | no word in its log"),
        ("print('before'); 1 / 0", 1, "ZeroDivisionError"),
        ("import sys; print('arealite: a bug'); sys.exit(70)", 70, "exit code 70; its last lines"),
        (KILLED.format(11), 70, "the trainer was killed by SIGSEGV; its last lines"),
        (KILLED.format(15), 75, "the trainer was killed by SIGTERM; its last lines"),
        (KILLED.format(10), 75, "the trainer was killed by SIGUSR1; its last lines"),
        ("import sys; print('arealite: x.yaml: odd'); sys.exit(2)", 2, "x.yaml: odd"),
    ],
)
def test_a_trainer_that_fails_gives_the_run_its_sentence_and_code(
    tmp_path: Path, trainer: str, code: int, says: str
) -> None:
    with pytest.raises(ArealiteError) as caught:
        with Supervisor(plan_of(tmp_path, trainer), grace_s=5) as supervisor:
            watched(supervisor)
    assert caught.value.exit_code == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "suspect"),
    [
        (3, 4, ", likely by the out-of-memory killer (lower actor.mb_spec.max_tokens_per_mb"),
        (None, None, ", likely by the out-of-memory killer (lower "),  # a system without a count
        (3, 3, " (by hand or by a job scheduler: the kernel has killed nothing for want of memory"),
    ],
)
def test_a_trainer_that_is_killed_is_no_bug(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int | None,
    after: int | None,
    suspect: str,
) -> None:
    counts = iter([before, after])
    monkeypatch.setattr("arealite.launch.endings.count_oom_kills", lambda: next(counts, after))
    with pytest.raises(Killed) as caught:
        with Supervisor(plan_of(tmp_path, KILLED.format(9)), grace_s=5) as supervisor:
            watched(supervisor)
    assert caught.value.exit_code == 8
    assert str(caught.value).startswith(f"the trainer was killed by SIGKILL{suspect}")
    assert str(caught.value).endswith(
        f"its last lines ({tmp_path}/run/logs/trainer.log):\n  trainer | x"
    )


def test_a_server_that_dies_shows_its_last_lines(tmp_path: Path) -> None:
    server = "for i in range(50): print('line', i)\nraise SystemExit('out of memory')"
    with pytest.raises(EnginesExhausted) as caught:
        with Supervisor(plan_of(tmp_path, WAIT, server), grace_s=5) as supervisor:
            watched(supervisor)
    sentence = str(caught.value)
    assert sentence.startswith("server-0 ended with exit code 1; its last lines")
    assert sentence.endswith("server-0 | out of memory")
    assert sentence.count("line ") == 19
    assert str(tmp_path / "run/logs/server-0.log") in sentence


@pytest.mark.parametrize("word", ["arealite: the model has no head", "the model has no head"])
def test_a_server_that_cannot_use_its_input_ends_the_run_with_exit_2(
    tmp_path: Path, word: str
) -> None:
    server = f"print({word!r}); raise SystemExit(2)"
    with pytest.raises(ConfigError, match=r"^server-0: the model has no head$"):
        with Supervisor(plan_of(tmp_path, WAIT, server), grace_s=5) as supervisor:
            watched(supervisor)


def test_a_command_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with Supervisor(plan_of(tmp_path, ""), grace_s=5) as supervisor:
        with pytest.raises(ConfigError, match="/no/such/program cannot be started"):
            supervisor.prepare(step(tmp_path / "x", ("/no/such/program",), 5.0), print)


def test_a_child_that_ignores_the_request_is_ended_after_the_grace(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(10, signal.SIG_IGN); print('up', flush=True); "
    with Supervisor(plan_of(tmp_path, stubborn + "time.sleep(60)"), grace_s=0.2) as supervisor:
        trainer = supervisor.start()
        eventually(lambda: trainer.log.read_text() == "up\n", "the start of the trainer")
    assert trainer.process.returncode == -signal.SIGKILL


def test_published_weights_are_removed_once_the_trainer_has_ended(tmp_path: Path) -> None:
    # The trainer still writes while it is being ended: removing before would leave that behind.
    trainer = """
        import os, pathlib, signal, time
        folder = pathlib.Path(os.environ["AREALITE_WEIGHTS_DIR"])
        def last(*_):
            time.sleep(0.3)
            (folder / "v1").mkdir(parents=True)
            os._exit(0)
        signal.signal(signal.SIGUSR1, last)
        print(folder, flush=True)
        time.sleep(60)
    """
    with Supervisor(plan_of(tmp_path, trainer), grace_s=10) as supervisor:
        child = supervisor.start()
        eventually(lambda: child.log.read_text().endswith("\n"), "the start of the trainer")
        folder = Path(child.log.read_text().strip())
        assert folder.is_dir()
    assert child.process.returncode == 0
    assert not folder.exists()


ANSWER = """
    import os, socket, sys
    listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
    while True:
        connection, _ = listener.accept()
        connection.sendall(str(os.getpid()).encode())
        connection.close()
"""


def test_each_server_owns_its_port_from_the_start(tmp_path: Path) -> None:
    tell = "import os; print(os.environ['AREAL_LLM_SERVER_ADDRS'])"
    with Supervisor(plan_of(tmp_path, tell, *[ANSWER] * 3), grace_s=5) as supervisor:
        watched(supervisor)
        addresses = (tmp_path / "run/logs/trainer.log").read_text().strip().split(",")
        answers = []
        for address in addresses:  # connected at once: the kernel queues what comes early
            host, port = address.split(":")
            assert host == "127.0.0.1"
            with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
                answers.append(int(connection.recv(32)))
        assert answers == [child.process.pid for child in supervisor._children[:3]]


def test_fifty_plans_at_once_share_no_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeper(subprocess.Popen[bytes]):
        """Holds the inherited sockets without the cost of an interpreter."""

        def __init__(self, command: tuple[str, ...], **options: object) -> None:
            super().__init__(("sleep", "60"), **options)  # type: ignore[call-overload]
            starts.append(options["env"])

    starts: list[object] = []
    monkeypatch.setattr("arealite.launch.local.subprocess.Popen", Sleeper)
    supervisors = [Supervisor(plan_of(tmp_path / str(i), "", ""), 5) for i in range(50)]
    try:
        for supervisor in supervisors:
            supervisor.__enter__().start()
        addresses = [e["AREAL_LLM_SERVER_ADDRS"] for e in starts if "AREALITE_ROLE" in e]  # type: ignore[index, operator]
        assert len(addresses) == len(set(addresses)) == 50
    finally:
        for supervisor in supervisors:
            supervisor.__exit__()


# --- prepare steps


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(plan_of(tmp_path, ""), grace_s=5) as supervisor:
        yield supervisor


def test_a_prepare_step_runs_once(tmp_path: Path, supervisor: Supervisor) -> None:
    said: list[str] = []
    command = python("import sys; open(sys.argv[1], 'x')", str(tmp_path / "made"))
    for _ in range(2):
        supervisor.prepare(step(tmp_path / "made", command, 30.0), said.append)
    assert len(said) == 1
    assert said[0].startswith(f"preparing {tmp_path}/made: ")


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit(4)", "ended with exit code 4"),
        ("pass", "ended with exit code 0 and did not make"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal SIGKILL"),
    ],
)
def test_a_prepare_step_that_fails_is_named(
    tmp_path: Path, supervisor: Supervisor, program: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"preparing .*/made failed: .* {says}"):
        supervisor.prepare(step(tmp_path / "made", python(program), 30.0), lambda _: None)


def test_a_prepare_step_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with Supervisor(plan_of(tmp_path, ""), grace_s=5) as supervisor:
        with pytest.raises(Stall, match=r"preparing .*/made took longer than 0.2 s"):
            supervisor.prepare(step(tmp_path / "made", python(WAIT), 0.2), lambda _: None)
        child = supervisor._children[0].process
    assert child.returncode == -signal.SIGKILL, "the whole group, once the program has ended"


def test_a_prepare_step_that_ignores_the_request_is_ended_after_the_grace(tmp_path: Path) -> None:
    program = f"""
        import fcntl, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        file = open({str(tmp_path / "lock")!r}, "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        time.sleep(120)
    """
    prepare = step(tmp_path / "made", python(program), 1.5)
    with pytest.raises(Stall):
        with Supervisor(plan_of(tmp_path, ""), grace_s=0.2) as supervisor:
            supervisor.prepare(prepare, lambda _: None)
    if (tmp_path / "lock").exists():  # on a busy machine it may not even have come so far
        eventually(lambda: has_ended(tmp_path / "lock"), "the end of the prepare step")


# --- the command


def ran(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ran(cwd, "-m", "arealite.launch", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["seeed=1"], "the override 'seeed=1': there is no setting seeed; did you mean seed?"),
        (["gconfig.n_sample=1"], "did you mean gconfig.n_samples?"),
        (["mode=ppo"], "expected one of ['rl', 'sft']"),
        (["train_dataset.batch_size=0"], "it must be above 0"),
        (["--chek"], "usage: --config FILE"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2_before_anything_starts(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"prepare: [{{makes: made, run: touch made}}]\n{MODE_SFT}")
    done = launch(tmp_path, "--config", "run.yaml", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("arealite: ")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [config]


def end_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit code, output and errors of the command, without a new interpreter."""
    with pytest.raises(SystemExit) as ended:
        command.launch(arguments)
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_twenty_typos_are_twenty_clear_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", None)  # starting anything would be exit 70
    cpu = str(ROOT / "examples" / "countdown" / "cpu.yaml")
    assert len(TWENTY) == 20
    for typo, right in TWENTY:
        code, out, err = end_of(capsys, "--config", cpu, f"{typo}=1")
        assert (code, out) == (2, "")
        assert err == (
            f"arealite: the override '{typo}=1': there is no setting {typo}; "
            f"did you mean {right}?\n"
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"seed: [1\n", "run.yaml, line 2: this is not valid YAML"),
        (b"seed: 1\nfileroot: \xff\n", "run.yaml, line 2: this is not UTF-8 text"),
        (b"actor: 3\n", "run.yaml, line 1: actor is a section with keys of its own"),
        (b"fileroot: ${oc.env:AREALITE_NOT_SET}\n", "run.yaml, line 1: fileroot: "),
        (None, "run.yaml: there is no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: bytes | None,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("run.yaml").write_bytes(text)
    code, out, err = end_of(capsys, "--config", "run.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(f"arealite: {says}")
    assert "Traceback" not in err


CONFIGS = sorted((ROOT / "examples").rglob("*.yaml"))
SEED = [
    "scheduler.type=local",
    "experiment_name=countdown-grpo",
    "trial_name=trial1",
    "actor.path=Qwen/Qwen2.5-3B-Instruct",
    "train_dataset.path=data/countdown/qwen/train_e.jsonl",
    "valid_dataset.path=data/countdown/qwen/test_e.jsonl",
    "stats_logger.wandb.mode=disabled",
    "--check",
]


def test_the_seeds_command_prints_its_plan_in_both_forms(tmp_path: Path) -> None:
    folder = ROOT / "examples" / "countdown"
    config = str(folder / "train_config.yaml")
    plain = launch(tmp_path, "--config", config, *SEED)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "runs/countdown-grpo/trial1" in plain.stdout
    assert "256 rows x 8 samples = 2048 samples" in plain.stdout
    assert "Qwen/Qwen2.5-3B-Instruct" in plain.stdout
    script = ran(tmp_path, str(folder / "train.py"), "--config", config, *SEED)
    assert (script.returncode, script.stderr, script.stdout) == (0, "", plain.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_check_prints_the_plan_and_starts_nothing(tmp_path: Path, config: Path) -> None:
    done = launch(tmp_path, "--config", str(config), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("run folder", "trainer", "batch", "versions", "memory"):
        assert re.search(rf"^{word}  ", done.stdout, re.MULTILINE), word
    assert list(tmp_path.iterdir()) == []


CHECK = [sys.executable, "-m", "arealite.launch", "--config", "run.yaml", "--check"]


def check_into(folder: Path, output: int) -> tuple[int, str]:
    (folder / "run.yaml").write_text(MODE_SFT)
    done = subprocess.run(
        CHECK, cwd=folder, env=ENVIRONMENT, stdout=output, stderr=subprocess.PIPE, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_check_whose_reader_has_gone_ends_well(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert check_into(tmp_path, write_end) == (0, "")
    os.close(write_end)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_check_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        code, said = check_into(tmp_path, full.fileno())
    assert code == 2
    assert said.startswith("arealite: the plan cannot be written to standard output: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("check", [True, False])
def test_a_file_that_is_not_there_is_told_before_anything_starts(
    tmp_path: Path, check: bool
) -> None:
    (tmp_path / "run.yaml").write_text(MODE_SFT)
    done = launch(tmp_path, "--config", "run.yaml", *["--check"][: int(check)])
    if check:
        assert (done.returncode, done.stderr) == (0, "")
        assert "missing: train_dataset.path t.jsonl is not there yet" in done.stdout
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("arealite: train_dataset.path: t.jsonl is not there, and no")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("key", ["actor.path", "tokenizer_path"])
@pytest.mark.parametrize("check", [True, False])
def test_a_folder_that_holds_no_model_is_told_before_anything_starts(
    tmp_path: Path, key: str, check: bool
) -> None:
    (tmp_path / "run.yaml").write_text(MODE_SFT)
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "notes").mkdir()
    done = launch(tmp_path, "--config", "run.yaml", f"{key}=notes", *["--check"][: int(check)])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"arealite: {key}: the folder notes has no ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("check", [True, False])
def test_a_misspelled_reward_is_told_before_prepare_starts(tmp_path: Path, check: bool) -> None:
    (tmp_path / "reward.py").write_text("def compute_score(text, truth): return 0.0\n")
    text = MODE_SFT.replace("mode: sft", "prepare: [{makes: t.jsonl, run: touch t.jsonl}]")
    (tmp_path / "run.yaml").write_text(text + "gconfig: {n_samples: 4}\n")
    reward = "rollout.reward_fn=reward.py:compute_scor"
    done = launch(tmp_path, "--config", "run.yaml", reward, *["--check"][: int(check)])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "arealite: rollout.reward_fn: reward.py has no 'compute_scor'; it has compute_score\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reward.py", "run.yaml"]


LAUNCHER = """
from arealite.launch import launch
launch(trainer=("trainer.py",))
"""
TRAINER = """
import fcntl, os, time
from arealite.processes import follow_parent
follow_parent()
file = open("trainer.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)  # held for as long as this process lives
file.write(os.environ["AREALITE_WEIGHTS_DIR"])
file.flush()
time.sleep(120)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose trainer is up and holds trainer.lock."""
    rows(tmp_path)
    (tmp_path / "run.yaml").write_text(MODE_SFT)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    (tmp_path / "trainer.py").write_text(TRAINER)
    launcher = subprocess.Popen(
        [sys.executable, "launcher.py", "--config", "run.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lock = tmp_path / "trainer.lock"
    try:
        eventually(lambda: lock.exists() and bool(lock.read_text()), "the start of the trainer")
        yield launcher
    finally:
        launcher.kill()
        launcher.communicate()


def has_ended(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_no_child_outlives_a_killed_launcher(
    tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    assert not has_ended(tmp_path / "trainer.lock")
    running.kill()
    running.wait()
    eventually(lambda: has_ended(tmp_path / "trainer.lock"), "the end of the trainer")


def test_no_prepare_step_outlives_a_killed_launcher(tmp_path: Path) -> None:
    """A program that knows nothing of lifelines, held by a shell: both must end."""
    (tmp_path / "slow.py").write_text(
        "import fcntl, time\nfile = open('slow.lock', 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('up')\nfile.flush()\ntime.sleep(120)\n"
    )
    run = f"sh -c '{sys.executable} slow.py; true'"
    (tmp_path / "run.yaml").write_text(f'prepare: [{{makes: made, run: "{run}"}}]\n{MODE_SFT}')
    launcher = subprocess.Popen(
        [sys.executable, "-m", "arealite.launch", "--config", "run.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
    )
    lock = tmp_path / "slow.lock"
    try:
        eventually(lambda: lock.exists() and lock.read_text() == "up", "the prepare step")
        assert not has_ended(lock)
    finally:
        launcher.kill()
        launcher.wait()
    eventually(lambda: has_ended(lock), "the end of the prepare step")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_launcher_that_is_asked_to_stop_ends_its_children_and_says_75(
    tmp_path: Path, running: subprocess.Popen[str], number: signal.Signals
) -> None:
    running.send_signal(number)
    output, _ = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 75
    assert f"arealite: stopped by {number.name}" in output
    assert "Traceback" not in output
    assert has_ended(tmp_path / "trainer.lock")
    assert not Path((tmp_path / "trainer.lock").read_text()).exists()
    assert '"failed"' in (tmp_path / "runs/e/trial0/status.json").read_text()


def test_a_second_launcher_of_the_same_name_leaves_the_first_alone(
    tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    second = launch(tmp_path, "--config", "run.yaml")
    assert second.returncode == 2
    assert second.stderr == (
        f"arealite: run folder runs/e/trial0 is in use by pid {running.pid}; "
        "give another trial_name or stop it\n"
    )
    assert running.poll() is None
    assert [path.name for path in (tmp_path / "runs/e").iterdir()] == ["trial0"]


DYING = """
import json, os, pathlib, signal, time
path = pathlib.Path("runs/e/trial0/status.json")
def stop(*_):
    fields = {"phase": "failed", "version": 7, "counts": {"trained": 3}, "error": "by SIGTERM"}
    path.write_text(json.dumps(fields))
    raise SystemExit(75)
signal.signal(signal.SIGUSR1, stop)
os.kill(int(os.environ["VICTIM"]), 9)
time.sleep(60)
"""


def test_the_status_keeps_the_true_cause_and_what_the_trainer_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path)
    (tmp_path / "run.yaml").write_text(MODE_SFT)
    (tmp_path / "trainer.py").write_text(DYING)
    start = Supervisor.start

    def with_a_victim(self: Supervisor) -> Child:
        victim = self._start(Process("server-0", ("sleep", "60")), tmp_path / "server.log")
        monkeypatch.setenv("VICTIM", str(victim.process.pid))
        return start(self)

    monkeypatch.setattr(Supervisor, "start", with_a_victim)
    with pytest.raises(SystemExit) as ended:
        command.launch(["--config", "run.yaml"], ("trainer.py",))
    capsys.readouterr()
    assert ended.value.code == 5
    status = json.loads((tmp_path / "runs/e/trial0/status.json").read_text())
    assert status["error"].startswith("server-0 ended with signal SIGKILL")
    assert (status["phase"], status["version"], status["counts"]) == ("failed", 7, {"trained": 3})
