"""The health of servers: whatever happens in whatever order, only verified weights serve."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arealite.engines.fleet import Event, Fleet, Health, Server, State, after
from arealite.errors import EnginesExhausted
from arealite.telemetry.waits import Waits

VERSIONS = st.integers(0, 3)
EVENTS = st.one_of(
    st.sampled_from([Event("awaited"), Event("answered"), Event("silent"), Event("failed")]),
    st.builds(Event, st.sampled_from(["begun", "verified", "refused"]), VERSIONS),
)
HISTORIES = st.lists(EVENTS, max_size=60)


@given(HISTORIES)
def test_only_the_wanted_version_verified_here_serves(history: list[Event]) -> None:
    health, wanted, shown = Health(), None, None
    for event in history:
        if event.kind == "begun":
            wanted, shown = event.version, None
        was = health
        health = after(health, event)
        if event.kind == "silent" and was.state != "starting":
            shown = None  # whatever it had shown: it may come back as another process
        if event.kind == "verified" and was.state == "updating" and event.version == wanted:
            shown = event.version
        assert health.wanted == wanted
        if health.state == "serving":
            assert health.verified == wanted == shown
        if health.state == "suspect":
            assert health.verified == wanted


@given(HISTORIES)
def test_a_server_that_was_lost_returns_only_by_a_load_and_its_verification(
    history: list[Event],
) -> None:
    health = after(Health(), Event("begun", 1))
    since_lost: list[str] | None = None
    for event in [Event("verified", 1), Event("silent", reason="x"), *history]:
        before, health = health, after(health, event)
        if health.state == "dead":
            since_lost = []
        elif since_lost is not None and health != before:
            since_lost.append(event.kind)
        if health.state == "serving" and since_lost is not None:
            assert since_lost[0] == "answered"
            assert "begun" in since_lost
            assert since_lost[-1] == "verified"
            since_lost = None


@given(HISTORIES)
def test_from_any_state_a_server_can_come_to_serve_again(history: list[Event]) -> None:
    health = Health()
    for event in [*history, Event("answered"), Event("begun", 9), Event("verified", 9)]:
        health = after(health, event)
        assert health.state in get_args(State)
    assert health == Health("serving", 9, 9)


@given(st.lists(st.tuples(st.integers(0, 2), EVENTS), max_size=60))
def test_every_change_is_told_and_each_begins_where_the_last_one_ended(
    history: list[tuple[int, Event]],
) -> None:
    last: dict[Server, Health] = {}

    def told(server: Server, before: Health) -> None:
        assert before == last.get(server, Health())
        assert server.health != before
        last[server] = server.health

    async def main() -> None:
        fleet = Fleet(["a", "b", "c"], Waits(), 0.0, told)
        for index, event in history:
            fleet.tell(fleet.servers[index], event)
        for server in fleet.servers:
            assert server.health == last.get(server, Health())
        assert fleet.serving == [s for s in fleet.servers if s.health.state == "serving"]
        if not fleet.serving and all(s.state != "updating" for s in fleet.servers):
            with pytest.raises(EnginesExhausted, match=r"server a is .*; server b is "):
                await fleet.some()

    asyncio.run(main())


def test_who_waits_for_a_server_goes_on_when_one_serves() -> None:
    async def main() -> None:
        waits = Waits()
        fleet = Fleet(["a", "b"], waits, 60.0, lambda server, before: None)
        for server in fleet.servers:
            fleet.tell(server, Event("silent", reason="gone"))
        waiting = asyncio.create_task(fleet.some())
        await asyncio.sleep(0)
        for event in (Event("answered"), Event("silent", reason="again")):  # in one turn
            fleet.tell(fleet.servers[1], event)
        await asyncio.sleep(0)
        assert waits.count() == 1
        fleet.tell(fleet.servers[1], Event("answered"))
        async with asyncio.timeout(30.0):
            assert await waiting == [fleet.servers[1]]
        assert waits.count() == 0
        assert [entry["state"] for entry in fleet.report()] == ["dead", "serving"]

    asyncio.run(main())
