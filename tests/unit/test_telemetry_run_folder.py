"""Files of the run folder: whole, valid and in order, whatever text or disk does."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arealite.errors import ConfigError
from arealite.telemetry import run_folder as files
from arealite.telemetry.run_folder import (
    JsonLines,
    RunFolder,
    Tail,
    read_lines,
    to_line,
    write_atomically,
)

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=12,
)


def test_the_paths_are_the_contract(tmp_path: Path) -> None:
    folder = RunFolder.of(tmp_path, "exp", "trial").create()
    assert folder.path == tmp_path / "exp" / "trial"
    names = {
        p.name: p
        for p in (
            folder.config, folder.status, folder.metrics, folder.transcripts, folder.ledger,
            folder.checkpoints, folder.logs, folder.curves, folder.summary,
        )
    }  # fmt: skip
    assert set(names) == {
        "config.yaml", "status.json", "metrics.jsonl", "transcripts.jsonl", "ledger.jsonl",
        "checkpoints", "logs", "curves.png", "summary.txt",
    }  # fmt: skip
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()
    assert (folder.experiment, folder.trial) == ("exp", "trial")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b"])
def test_a_name_that_is_not_one_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="experiment_name"):
        RunFolder.of(tmp_path, name, "t")


def test_a_run_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run").create()


def test_write_atomically_never_shows_a_part(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, "a" * 50_000)
    stop = threading.Event()

    def rewrite() -> None:
        for i in range(200):
            write_atomically(path, "ab"[i % 2] * 50_000, fsync=i % 50 == 0)
        stop.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    while not stop.is_set():
        seen = path.read_text()
        assert len(seen) == 50_000
        assert len(set(seen)) == 1
    writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_write_atomically_keeps_the_old_file_when_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomically(path, "old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="input/output"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@given(st.dictionaries(any_text, any_json, max_size=4))
def test_every_line_is_strict_json_in_utf8(mapping: dict[str, object]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    line = to_line(mapping)
    text = line.decode("utf-8")  # strict: no lone surrogate
    assert text.splitlines() == [text[:-1]]
    value = json.loads(text, parse_constant=refuse)
    assert "\ud800" not in json.dumps(value, ensure_ascii=False)
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def test_odd_values_become_something_readable() -> None:
    class Scalar:
        ndim = 0

        def item(self) -> float:
            return 2.5

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    loop: list[object] = []
    loop.append(loop)
    line = {"nan": float("nan"), "s": Scalar(), "p": Path("a/b"), "h": Hostile(), (1, 2): 3}
    read = json.loads(to_line({**line, "loop": loop}))  # type: ignore[dict-item]
    assert read["nan"] is None
    assert read["s"] == 2.5
    assert read["p"] == "a/b"
    assert read["h"] == "<Hostile>"
    assert read["(1, 2)"] == 3
    assert json.loads(to_line({"t": "\ud83d \0 \u2028 ü"}))["t"] == "\ufffd \0 \u2028 ü"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(lines=st.lists(st.dictionaries(any_text, any_json, max_size=2), max_size=5), data=st.data())
def test_a_crash_at_any_byte_costs_at_most_the_last_line(
    tmp_path: Path, lines: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path / "l.jsonl"
    path.unlink(missing_ok=True)
    whole = [to_line(line) for line in lines]
    text = b"".join(whole)
    cut = data.draw(st.integers(0, len(text)))
    path.write_bytes(text[:cut])
    survivors = [json.loads(line) for line in whole if text[:cut].startswith(line)]
    complete = text[:cut].count(b"\n")
    assert len(survivors) <= len(lines)
    read = list(read_lines(path))
    # Without its line end the last line may still be whole.
    assert read[:complete] == [json.loads(line) for line in whole[:complete]]
    assert len(read) in (complete, complete + 1)

    writer = JsonLines(path)
    writer.write({"after": 1})
    writer.close()
    assert list(read_lines(path)) == [*read, {"after": 1}]


def test_read_lines_of_nothing_and_with_a_filter(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "absent")) == []
    path = tmp_path / "l"
    path.write_bytes(b'{"a":1}\nnot json\n[1]\n\n{"a":2}\n\xff\xfe\n{"b')
    assert list(read_lines(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_lines(path, containing=b'"a":2')) == [{"a": 2}]


def test_tail_gives_each_line_once_and_notices_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "l"
    tail = Tail(path)
    assert tail.new() == []
    path.write_bytes(b'{"a":1}\n{"a"')
    assert tail.new() == [{"a": 1}]
    with path.open("ab") as file:
        file.write(b":2}\n")
    assert tail.new() == [{"a": 2}]
    assert tail.new() == []
    before = tail.generation
    write_atomically(path, '{"a":3}\n')
    assert tail.new() == [{"a": 3}]
    assert tail.generation == before + 1


def test_json_lines_buffers_and_flushes(tmp_path: Path) -> None:
    path = tmp_path / "l"
    writer = JsonLines(path, flush_s=1000, flush_bytes=200)
    writer.write({"a": 1})
    assert not path.exists()
    writer.flush()
    assert len(list(read_lines(path))) == 1
    for _ in range(30):
        writer.write({"a": 1})
    assert len(list(read_lines(path))) > 10
    writer.close()
    assert len(list(read_lines(path))) == 31


def test_many_threads_tear_no_line(tmp_path: Path) -> None:
    writer = JsonLines(tmp_path / "l", flush_bytes=500)

    def write(k: int) -> None:
        for i in range(200):
            writer.write({"k": k, "i": i, "pad": "x" * (i % 50)})

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    seen = [(line["k"], line["i"]) for line in read_lines(tmp_path / "l")]
    assert sorted(seen) == [(k, i) for k in range(8) for i in range(200)]


def test_a_full_disk_costs_one_alarm_and_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, heard = tmp_path / "l", list[str]()
    real, room = os.write, [25]

    def write(fd: int, data: bytearray) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = real(fd, bytes(data[: room[0]]))
        room[0] -= n
        return n

    monkeypatch.setattr(os, "write", write)
    writer = JsonLines(path, heard.append, flush_s=0)
    for i in range(10):
        writer.write({"line": i})
    writer.close()
    assert len(heard) == 1
    assert "No space left" in heard[0]
    assert "l cannot be written" in heard[0]
    assert writer.failures > 1
    assert path.stat().st_size == 25  # torn in the middle of a line
    room[0] = 10**6
    writer.write({"line": 10})
    writer.close()
    assert [line["line"] for line in read_lines(path)] == list(range(11))
    assert path.read_bytes().count(b"\n") == 11
    assert writer.lost == 0


def test_beyond_its_memory_lines_are_counted_as_lost(tmp_path: Path) -> None:
    heard = list[str]()
    writer = JsonLines(tmp_path / "no" / "folder", heard.append, flush_s=0, keep_bytes=100)
    for i in range(100):
        writer.write({"line": i})
    assert len(heard) == 1
    assert writer.lost > 80
    (tmp_path / "no").mkdir()
    writer.flush()
    kept = [line["line"] for line in read_lines(tmp_path / "no" / "folder")]
    assert kept == list(range(100 - writer.lost))


def test_telemetry_stays_on_its_floor_and_is_cheap_to_import() -> None:
    folder = Path(files.__file__).parent
    names = [f"arealite.telemetry.{p.stem}" for p in folder.glob("*.py") if p.stem != "__init__"]
    code = (
        f"import sys, importlib; [importlib.import_module(n) for n in {sorted(names)!r}]\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'wandb', 'matplotlib', 'omegaconf',"
        " 'arealite.config', 'aiohttp') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
