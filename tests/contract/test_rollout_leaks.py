"""Nothing of an episode stays behind when it has ended, whichever way it ended.

Two equal stretches of episodes are played; the first may warm up caches and connections, after the
second the process must hold what it held after the first. Both end at rest: with staleness 0 a
batch taken and not yet answered by a version means that nothing runs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from client_support import PROBE, FakeServer, probed, sample
from session_support import numbered_rows

from arealite.engines.client import RemoteEngine
from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.rollout.door import Limits, Rollouts
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status
from arealite.telemetry.transcripts import Transcripts
from arealite.telemetry.waits import Waits
from arealite.types import Episode, ModelRequest, Trajectory, WeightUpdate

BATCH = 50


class Pair:
    """Two samples of a row; every tenth row fails, every tenth is rejected."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def arun_episode(self, engine: Any, data: Mapping[str, Any]) -> Any:
        self.loop = asyncio.get_running_loop()
        request = ModelRequest([1, 2, data["row"]])
        responses = await asyncio.gather(*[engine.agenerate(request) for _ in range(2)])
        if data["row"] % 10 == 0:
            raise ValueError("a workflow that fails")
        if data["row"] % 10 == 5:
            return None
        return [Trajectory.from_response(response, 1.0) for response in responses]


class Stretches:
    """Plays stretches of episodes through the door and says what each left behind."""

    def __init__(self, engine: Any, waits: Waits, folder: Path) -> None:
        self.workflow, self.waits, self.published = Pair(), waits, -1
        told = RunFolder(folder)
        self.rollouts = Rollouts(
            engine,
            self.workflow,
            numbered_rows(),
            Limits(BATCH, eta=0, stall_timeout_s=60.0),
            keep=self._keep,
            status=Status(told, waits),
            transcripts=Transcripts(told),
            waits=waits,
        )

    def _keep(self, episode: Episode) -> bool:
        return episode.row["row"] % 10 != 7

    def play(self, versions: int) -> dict[str, int]:
        for _ in range(versions):
            self.published += 1
            self.rollouts.publish(WeightUpdate(self.published, "", PROBE))
            self.rollouts.next_batch()
            self.rollouts.stats()
        self.rollouts._batch = []  # the trainer's, not an episode's remains
        assert self.waits.count() == 0
        counts = self.rollouts.counts
        assert counts["counts/in_flight"] == counts["counts/buffered"] == 0
        ended = sum(counts[f"counts/{fate}"] for fate in ("trained", "failed", "filtered"))
        assert counts["counts/admitted"] == ended
        gc.collect()
        return {
            "tasks": len(asyncio.all_tasks(self.workflow.loop)),
            "threads": threading.active_count(),
            "descriptors": len(os.listdir("/dev/fd")),
            "objects": len(gc.get_objects()),
            "blocks": sys.getallocatedblocks(),  # of the allocator, so also what gc does not see
        }


def test_thousands_of_episodes_leave_nothing_behind(tmp_path: Path) -> None:
    engine = ScriptedEngine(
        lambda request, serial: Sample(length=4, outcome="fail" if serial % 50 == 49 else "answer")
    )
    stretches = Stretches(engine, Waits(), tmp_path)
    with stretches.rollouts:
        stretches.play(40)
        first = stretches.play(40)
        second = stretches.play(40)
        episodes = 40 * BATCH
    # What an earlier test of this process left may end meanwhile, so fewer is no fault.
    for what in ("tasks", "threads", "descriptors"):
        assert second[what] <= first[what], what
    for what in ("objects", "blocks"):
        assert second[what] - first[what] < episodes / 4, what


def test_episodes_over_http_leave_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        waits = Waits()
        async with FakeServer() as server:
            engine = RemoteEngine([server.address], waits, request_timeout_s=20.0)
            stretches = Stretches(engine, waits, tmp_path)

            async def newest(request: web.Request, body: Any) -> web.StreamResponse:
                if "logprob_start_len" in body:
                    return web.json_response(probed(*PROBE.logprobs))
                both = [sample([3, 4], version=stretches.published) for _ in range(2)]
                return web.json_response(both)

            server.always["/generate"] = newest

            def play() -> list[dict[str, int]]:
                found = []
                with stretches.rollouts:
                    for _ in range(3):
                        found.append(stretches.play(8))
                        server.asked.clear()
                        assert [s.running for s in engine.servers] == [0]
                return found

            _, first, second = await asyncio.to_thread(play)
        episodes = 8 * BATCH
        assert second["tasks"] <= first["tasks"]
        assert second["threads"] <= first["threads"]
        # Kept-alive connections may still become a few more, but not with every episode.
        assert second["descriptors"] - first["descriptors"] < episodes / 4
        assert second["objects"] - first["objects"] < episodes / 4

    asyncio.run(main())
