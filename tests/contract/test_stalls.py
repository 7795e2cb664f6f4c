"""Nothing stands still in silence: a stall is tried to be mended, then ends in a report."""

from __future__ import annotations

import asyncio
import dataclasses
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from session_support import Solo, numbered_rows, update

from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.errors import EngineError, ErrorBudgetSpent, Stall
from arealite.rollout.limits import Limits
from arealite.rollout.session import Session
from arealite.simulate.clock import run_virtually
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status, read_status
from arealite.telemetry.view import View
from arealite.telemetry.waits import Waits
from arealite.types import ModelRequest, ModelResponse, Trajectory


class Sleeps(Solo):
    """Every third row takes an hour before it asks."""

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
        if data["row"] % 3 == 0:
            await asyncio.sleep(3600)
        return await super().arun_episode(engine, data)


def _first_batch(engine: Any, workflow: Any, limits: Limits, **options: Any) -> Any:
    """(the first batch, the session) under a virtual clock: hours cost nothing."""

    async def play() -> Any:
        session = Session(engine, workflow, numbered_rows(), limits, **options)
        await session.wait_ready()
        await session.publish(update(0))
        return await session.next_batch(), session

    return run_virtually(play())


def test_a_request_that_hangs_is_sent_again_before_anybody_gives_up() -> None:
    engine = ScriptedEngine(
        lambda request, serial: Sample(outcome="hang" if serial == 1 else "answer", token_s=1.0)
    )
    batch, _ = _first_batch(engine, Solo(), Limits(2, 0, stall_timeout_s=600.0))
    assert [episode.sample_id for episode in batch] == ["0:0", "0:1"]
    assert engine.requests == 3


def test_a_stall_ends_in_a_report_that_names_all(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))
    report = tmp_path / "stall.txt"
    with pytest.raises(Stall, match=r"nothing has moved for \d+\.\d s .*stall\.txt"):
        _first_batch(engine, Solo(), Limits(2, 0), stall_report=report)
    text = report.read_text()
    for words in (
        "rollouts did not deliver a batch of 2 episodes",
        "workflow owes an episode",
        "2 time(s)",
        "2 request(s) under way were sent again",
        "Rows under way (oldest first): 0:0, 0:1",
        "2 task(s) wait at",
        "in Solo.arun_episode",
        "in ScriptedEngine.agenerate",
        "thread MainThread is at",
    ):
        assert words in text, f"{words!r} is not in\n{text}"


def test_the_server_that_owes_a_reply_is_told_before_the_episode(tmp_path: Path) -> None:
    waits, folder, told = Waits(), RunFolder(tmp_path), []
    status, report = Status(folder, waits), tmp_path / "stall.txt"

    class Asks(ScriptedEngine):
        """As the client does: every request is a wait."""

        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            with waits.on("server :1", "POST /generate", 60.0):
                return await super().agenerate(request)

    async def play() -> None:
        engine = Asks(lambda request, serial: Sample(outcome="hang"))
        options = {"waits": waits, "status": status, "stall_report": report}
        session = Session(engine, Solo(), numbered_rows(), Limits(2, 0), **options)
        await session.publish(update(0))
        batch = asyncio.create_task(session.next_batch())
        await asyncio.sleep(1.0)
        session.tell_counts()
        status.flush()
        told.extend(View("", read_status(folder), [], 0.0).waits())
        await batch

    with pytest.raises(Stall, match=r"; server :1 owes POST /generate; the report is"):
        run_virtually(play())
    parts = [line.split(", ")[:2] for line in told]
    assert parts[0] == ["server :1", "POST /generate"]
    assert sorted(parts[1:]) == [
        ["rollouts", "a batch of 2 episodes"],
        ["workflow", "an episode"],
    ]
    debts = [line for line in report.read_text().splitlines() if " time(s)" in line]
    assert debts[0].startswith("  server :1 owes POST /generate for ")
    assert debts[0].endswith(" s, 2 time(s); deadline 60 s")
    ends = {debt.split(" owes ")[0].strip(): debt.rpartition("; ")[2] for debt in debts[1:]}
    assert ends == {"rollouts": "deadline 600 s", "workflow": "no deadline of its own"}


def test_slow_is_no_stall() -> None:
    """Each episode takes most of the limit, one after the other: the batch takes far longer."""
    engine = ScriptedEngine(lambda request, serial: Sample(length=1, first_s=500.0))
    limits = Limits(8, 0, max_running=1, stall_timeout_s=600.0)
    batch, _ = _first_batch(engine, Solo(), limits)
    assert len(batch) == 8


def test_tokens_are_movement_too() -> None:
    """One episode of ten hours whose server goes on sampling."""

    class Counts(ScriptedEngine):
        async def server_metrics(self) -> Mapping[str, float]:
            return {"tokens_generated": asyncio.get_running_loop().time()}

    engine = Counts(lambda request, serial: Sample(length=1, first_s=36000.0))
    batch, _ = _first_batch(engine, Solo(), Limits(1, 0, stall_timeout_s=600.0))
    assert len(batch) == 1
    assert engine.requests == 1


@pytest.mark.parametrize("counts", [(100.0, None), (100.0, 150.0)], ids=["silent", "one of two"])
def test_a_server_that_comes_and_goes_is_no_movement(counts: tuple[float, float | None]) -> None:
    class Flaps(ScriptedEngine):
        async def server_metrics(self) -> Mapping[str, float]:
            self.looks = getattr(self, "looks", 0) + 1
            told = counts[self.looks % 2]
            return {} if told is None else {"tokens_generated": told}

    with pytest.raises(Stall, match="nothing has moved"):
        _first_batch(Flaps(lambda request, serial: Sample(outcome="hang")), Solo(), Limits(1, 0))


def test_the_episode_that_hangs_is_told_before_the_batch_although_it_is_younger() -> None:
    """A row fails, and the one that takes its place never ends."""
    engine = ScriptedEngine(
        lambda r, serial: Sample(outcome="hang" if serial else "fail", first_s=100.0)
    )
    with pytest.raises(Stall, match="; workflow owes an episode"):
        _first_batch(engine, Solo(), Limits(1, 0))


def test_a_wait_that_is_no_stall_is_an_alarm(tmp_path: Path) -> None:
    """One row never ends while all others do; under `mask` training goes on without it."""
    folder, waits = RunFolder(tmp_path), Waits()
    status = Status(folder, waits)
    engine = ScriptedEngine(lambda r, serial: Sample(outcome="answer" if serial else "hang"))

    async def play() -> None:
        limits = Limits(1, 1, stall_timeout_s=0.2)
        session = Session(engine, Solo(), numbered_rows(), limits, status=status, waits=waits)
        await session.publish(update(0))
        for version in range(1, 8):
            assert await session.next_batch()
            await asyncio.sleep(0.06)
            session.tell_counts()
            await session.publish(update(version))

    asyncio.run(play())
    status.flush()
    alarms = [
        a for a in read_status(folder)["alarms"] if "workflow has owed an episode for" in str(a)
    ]
    assert len(alarms) == 1, read_status(folder)["alarms"]
    assert "the oldest row under way is 0:0" in str(alarms[0])


def test_an_episode_that_takes_too_long_costs_itself(tmp_path: Path) -> None:
    status = Status(RunFolder(tmp_path))
    limits = Limits(4, 0, episode_timeout_s=60.0)
    batch, session = _first_batch(ScriptedEngine(), Sleeps(), limits, status=status)
    assert [episode.row["row"] for episode in batch] == [1, 2, 4, 5]
    assert session.counts["counts/failed"] == session.counts["counts/failed/timeout"] == 2
    status.flush()
    kept = read_status(RunFolder(tmp_path))["errors"]["timeout"]
    assert kept["count"] == 2
    assert "row 0:0: workflow did not deliver an episode in" in kept["first"]
    assert "EpisodeTimeout" in kept["traceback"]


def test_errors_are_counted_by_kind_and_the_first_is_kept_whole() -> None:
    class Fails(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
            if data["row"] % 3 == 1:
                raise KeyError(f"column {data['row']}")
            return await super().arun_episode(engine, data)

    engine = ScriptedEngine(lambda r, serial: Sample(outcome="fail" if serial == 1 else "answer"))
    _, session = _first_batch(engine, Fails(), Limits(4, 0))
    failures = session._failures.by_kind
    assert {kind: of["count"] for kind, of in failures.items()} == {"engine": 1, "workflow": 2}
    assert "row 0:1" in failures["workflow"]["first"]
    assert "raise KeyError" in failures["workflow"]["traceback"]
    assert session.counts["counts/failed"] == 3


def test_an_error_that_many_rows_share_says_the_same_after_each() -> None:
    shared = EngineError("no server answered")

    class Lost(ScriptedEngine):
        async def agenerate(self, request: ModelRequest) -> ModelResponse:
            answer: asyncio.Future[ModelResponse] = asyncio.Future()
            answer.set_exception(shared)  # as the client tells all who wait for one request
            return await answer

    with pytest.raises(ErrorBudgetSpent, match="the last one: row 0:7: no server answered"):
        _first_batch(Lost(), Solo(), Limits(8, 0))
    assert traceback.format_exception_only(shared) == [
        "arealite.errors.EngineError: no server answered\n"
    ]


def test_a_filter_that_lets_nothing_pass_ends_the_run() -> None:
    with pytest.raises(ErrorBudgetSpent, match="the last 40 episodes were all filtered"):
        _first_batch(ScriptedEngine(), Solo(), Limits(2, 0), keep=lambda episode: False)


def test_a_filter_may_shrink_the_batch() -> None:
    def odd(episode: Any) -> bool:
        return bool(episode.row["row"] % 2)

    batch, session = _first_batch(ScriptedEngine(), Solo(), Limits(4, 0, refill=False), keep=odd)
    assert [episode.row["row"] for episode in batch] == [1, 3]
    assert session.counts["counts/filtered"] == 2
    assert session.counts["counts/admitted"] == 4


def test_a_batch_of_nothing_is_followed_by_another() -> None:
    """Its places are free again, or the run would stand still."""

    def late(episode: Any) -> bool:
        return bool(episode.row["row"] >= 9)

    batch, session = _first_batch(ScriptedEngine(), Solo(), Limits(4, 0, refill=False), keep=late)
    assert [episode.row["row"] for episode in batch] == [9, 10, 11]
    assert session.counts["counts/admitted"] == 12


def test_a_held_out_set_may_be_slow_too() -> None:
    """An episode of ten hours whose server goes on sampling is no stall."""

    class Counts(ScriptedEngine):
        async def server_metrics(self) -> Mapping[str, float]:
            return {"tokens_generated": asyncio.get_running_loop().time()}

    async def play() -> Any:
        engine = Counts(lambda request, serial: Sample(length=1, first_s=36000.0))
        session = Session(
            engine, Solo(), numbered_rows(), Limits(1, 0), eval_rows=[("valid:0", {})]
        )
        await session.publish(update(0))
        return await session.evaluate(0)

    assert run_virtually(play())["eval/valid/samples"] == 1.0


def test_a_held_out_set_that_stands_still_is_a_stall(tmp_path: Path) -> None:
    async def play() -> Any:
        engine = ScriptedEngine(lambda request, serial: Sample(outcome="hang"))
        report = tmp_path / "stall.txt"
        rows = [("valid:0", {})]
        session = Session(
            engine, Solo(), numbered_rows(), Limits(1, 0), eval_rows=rows, stall_report=report
        )
        await session.publish(update(0))
        return await session.evaluate(0)

    with pytest.raises(Stall, match="the held-out set at version 0"):
        run_virtually(play())
    assert "in evaluate.<locals>.one" in (tmp_path / "stall.txt").read_text()


def test_ends_are_movement_although_a_server_does_not_say_what_it_does() -> None:
    class Mute(ScriptedEngine):
        async def server_metrics(self) -> Mapping[str, float]:
            await asyncio.get_running_loop().create_future()
            return {}

    engine = Mute(lambda request, serial: Sample(length=1, first_s=250.0))
    batch, _ = _first_batch(engine, Solo(), Limits(12, 0, max_running=1, stall_timeout_s=600.0))
    assert len(batch) == 12
    assert engine.requests == 12


def _with_versions(version: int) -> Any:
    class Lies(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
            [played] = await super().arun_episode(engine, data)
            versions = [-1 if v < 0 else version for v in played.versions]
            return [dataclasses.replace(played, versions=versions)]

    return Lies()


def test_a_token_of_the_future_is_no_token() -> None:
    """It would never grow too old, and its lag would be below 0."""
    with pytest.raises(ErrorBudgetSpent, match=r"a token of version 1000, and the newest is 0"):
        _first_batch(ScriptedEngine(), _with_versions(1000), Limits(2, 0))


def test_tokens_that_are_never_young_end_the_run() -> None:
    """A workflow that writes version 0 for ever: from version 3 on all it plays is dropped."""

    async def play() -> None:
        engine = ScriptedEngine(lambda request, serial: Sample(length=1, token_s=1.0))
        session = Session(engine, _with_versions(0), numbered_rows(), Limits(2, 2))
        for version in range(9):
            await session.publish(update(version))
            await session.next_batch()

    with pytest.raises(ErrorBudgetSpent, match="120 finished episodes were too old"):
        run_virtually(play())


def test_a_workflow_that_rejects_everything_is_named() -> None:
    class Never:
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> None:
            return None

    words = r"Never\.arun_episode returned None for the last 40 rows, the last of them row 0:39"
    with pytest.raises(ErrorBudgetSpent, match=words):
        _first_batch(ScriptedEngine(), Never(), Limits(2, 0))


def test_an_error_that_cannot_speak_costs_its_row_only() -> None:
    class Dumb(Exception):
        def __str__(self) -> str:
            raise ValueError

    class Fails(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
            if data["row"] == 1:
                raise Dumb
            return await super().arun_episode(engine, data)

    batch, session = _first_batch(ScriptedEngine(), Fails(), Limits(2, 0))
    assert [episode.row["row"] for episode in batch] == [0, 2]
    assert "Dumb: (its __str__ raises ValueError)" in session._failures.by_kind["workflow"]["first"]


def test_a_held_out_failure_is_in_no_count_of_training() -> None:
    class Fails(Solo):
        async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> list[Trajectory]:
            if data["row"] == 0:
                raise KeyError
            return await super().arun_episode(engine, data)

    async def play() -> Session:
        rows = [(f"valid:{i}", {"row": i}) for i in range(4)]
        session = Session(
            ScriptedEngine(), Solo(), numbered_rows(), Limits(1, 0),
            eval_workflow=Fails(), eval_rows=rows,
        )  # fmt: skip
        await session.publish(update(0))
        await session.evaluate(0)
        return session

    session = run_virtually(play())
    assert "counts/failed/workflow" not in session.counts
    assert session._failures.by_kind["held-out workflow"]["count"] == 1
