"""How many episodes one process carries: 5,000 at once over HTTP, and 10^6 in a row.

    python benchmarks/rollout_scale.py [--part http|memory] [--episodes N] [--seconds 20 80]

http: the real door, buffer, runner, client and RLVR workflow, 8 samples of 64 to 256 tokens per
episode, against a server in a second process that answers each request after 20 to 80 seconds.
Two references in the same run, at the same concurrency: the same episodes with answers that are
there already (`bookkeeping`: no HTTP, no JSON), and the same requests by aiohttp and json alone
(`bare client`: what any client would pay). Loop lag is how late a timer of every 10 ms is; a
timer that is missed while the loop is busy counts too, from the first episode on.

memory: episodes that end in every way there is (trained, filtered, failed, dropped for their age)
on an engine that answers at once; nothing may grow between the second quarter and the last.

Linux only: it reads /proc/self.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import gc
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from saving import save
from scripted_server import PROBE, Script, raise_descriptor_limit, scripted_server

from arealite.engines import sglang
from arealite.engines.client import RemoteEngine
from arealite.engines.dialect import Part
from arealite.engines.scripted import Sample, ScriptedEngine
from arealite.protocols import ManagedEngine
from arealite.rollout.collector import rare_collections
from arealite.rollout.door import Rollouts
from arealite.rollout.limits import Limits
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.status import Status
from arealite.telemetry.transcripts import Transcripts
from arealite.telemetry.waits import Waits
from arealite.types import (
    Episode,
    GenerationHyperparameters,
    ModelRequest,
    ModelResponse,
    WeightUpdate,
)
from workflows.rlvr import RLVRWorkflow

TICK_S = 0.01
Figures = dict[str, float]


class Tokenizer:
    """The least that the workflow needs: 64 tokens of prompt, other ones for every row."""

    eos_token_id, pad_token_id = 0, 0

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(range(int(text), int(text) + 64))

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "word " * len(tokens)


async def reward(text: str, truth: Any) -> float:
    return float(len(text) % 2)


def workflow(samples: int) -> RLVRWorkflow:
    gconfig = GenerationHyperparameters(n_samples=samples, max_new_tokens=512)
    return RLVRWorkflow(reward, gconfig, Tokenizer(), chat=False)


def update(version: int) -> WeightUpdate:
    return WeightUpdate(version, "", PROBE)


def rows(seen: Callable[[int], None] = lambda index: None) -> Iterator[tuple[str, Any]]:
    """An endless stream; `seen` is called on the event loop, where rows are drawn."""
    for index in itertools.count():
        seen(index)
        yield f"0:{index}", {"query": str(index), "answer": str(index)}


class Lag:
    """How late each tick of a timer is, in seconds; ticks missed in a stall are late too."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        now = time.monotonic  # the loop's own time stands still within a turn
        due = now() + TICK_S
        while True:
            await asyncio.sleep(max(0.0, due - now()))
            while due <= now():
                self.late.append(now() - due)
                due += TICK_S

    def figures(self) -> Figures:
        late = sorted(self.late)
        return {
            f"lag_{name}_ms": 1000 * late[min(len(late) - 1, int(share * len(late)))]
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        }


def parse(reply: Any, script: Script) -> list[Part]:
    """As the client does."""
    gconfig = GenerationHyperparameters(max_new_tokens=512)
    asked = sglang.generate_body([1] * 64, gconfig, "", script.group)
    return sglang.parse_generate(reply, asked, "ours-", None)


class Instant(ScriptedEngine):
    """Answers that are there already, after the server's seconds: neither HTTP nor JSON."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        replies = [parse(json.loads(text), script) for text in script.texts()]
        self._parts = itertools.cycle([part for parts in replies for part in parts])
        self._waits, self._group = script.waits(), script.group
        self._answer: asyncio.Future[None] | None = None

    async def agenerate(self, request: ModelRequest) -> ModelResponse:
        if self.requests % self._group == 0 or self._answer is None:
            loop = asyncio.get_running_loop()  # one answer for the group, as over HTTP
            self._answer = loop.create_future()
            loop.call_later(next(self._waits), _settle, self._answer)
        self.requests += 1
        await self._answer
        part = next(self._parts)
        self.tokens_generated += len(part.tokens)
        versions = [self.version] * len(part.tokens)
        return ModelResponse(request.input_ids, part.tokens, part.logprobs, versions, "stop")


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():  # cancelled, at the end
        future.set_result(None)


# --- 5,000 at once


def measure_door(engine: ManagedEngine, waits: Waits, at_once: int, episodes: int) -> Figures:
    """CPU, lag and errors while `at_once` episodes are in flight, until `episodes` are trained.

    CPU is that of this whole process, counted when as many episodes as fly at once have been
    trained, so that every episode that is counted has both begun and ended.
    """
    lag = Lag()
    batch = max(1, at_once // 10)
    limits = Limits(batch, eta=20, max_running=at_once)
    in_flight: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        told = RunFolder(Path(folder))
        transcripts = Transcripts(told)
        options: dict[str, Any] = {"transcripts": transcripts, "waits": waits}
        options["status"] = Status(told, waits)
        stream = rows(lambda index: lag.start())
        with Rollouts(engine, workflow(8), stream, limits, **options) as rollouts:
            rollouts.publish(update(0))
            trained, version, began = 0, 0, (0.0, 0.0, 0)
            while trained < at_once + episodes:
                if trained <= at_once:
                    began = time.process_time(), time.monotonic(), trained
                trained += len(rollouts.next_batch())
                version += 1
                rollouts.publish(update(version))
                in_flight.append(rollouts.stats()["counts/in_flight"])
            cpu, seconds = time.process_time() - began[0], time.monotonic() - began[1]
            descriptors = len(os.listdir("/proc/self/fd"))
            counts = rollouts.counts
        transcripts.close()
    done = trained - began[2]
    return {
        "in_flight": statistics.median(in_flight),
        "episodes": done,
        "errors": counts["counts/failed"],
        "episodes_per_s": done / seconds,
        "cpu_ms_per_episode": 1000 * cpu / done,
        **lag.figures(),
        "descriptors": descriptors,
        "load_average": os.getloadavg()[0],  # above the cores, all figures suffer
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def over_http(script: Script, at_once: int, episodes: int) -> Figures:
    raise_descriptor_limit()
    waits = Waits()
    with scripted_server(script) as address:
        return measure_door(RemoteEngine([address], waits), waits, at_once, episodes)


def bookkeeping(script: Script, at_once: int, episodes: int) -> Figures:
    return measure_door(Instant(script), Waits(), at_once, episodes)


def bare_client(script: Script, at_once: int, episodes: int) -> Figures:
    """The same requests by aiohttp and json alone, the garbage collector set as the door does."""
    raise_descriptor_limit()
    request = ModelRequest(Tokenizer().encode("0"))
    body = sglang.generate_body(request.input_ids, request.gconfig, request.rid, script.group)
    lag, done = Lag(), 0
    began = 0.0, 0.0, 0
    enough = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, url: str) -> None:
        nonlocal done, began
        while True:
            async with session.post(url, json=body) as reply:
                json.loads(await reply.text())
            done += 1
            if done == at_once:
                began = time.process_time(), time.monotonic(), done
            if done >= at_once + episodes:
                enough.set()

    async def main(address: str) -> tuple[float, float]:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=600.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            lag.start()
            asking = []
            for _ in range(at_once):
                asking.append(asyncio.create_task(ask(session, f"http://{address}/generate")))
                await asyncio.sleep(0)
            await enough.wait()
            taken = time.process_time() - began[0], time.monotonic() - began[1]
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return taken

    with scripted_server(script) as address, rare_collections():
        cpu, seconds = uvloop.run(main(address))
    counted = done - began[2]
    return {
        "in_flight": at_once,
        "episodes": counted,
        "episodes_per_s": counted / seconds,
        "cpu_ms_per_episode": 1000 * cpu / counted,
        **lag.figures(),
        "load_average": os.getloadavg()[0],  # above the cores, all figures suffer
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def by_hand(script: Script) -> Figures:
    """What the steps of one reply cost by themselves, in ms: medians over all replies."""
    steps: dict[str, list[float]] = {"json_ms": [], "parse_ms": []}
    for text in script.texts():
        for _ in range(5):
            began = time.perf_counter()
            reply = json.loads(text)
            parsed = time.perf_counter()
            parse(reply, script)
            steps["json_ms"].append(1000 * (parsed - began))
            steps["parse_ms"].append(1000 * (time.perf_counter() - parsed))
    return {name: statistics.median(values) for name, values in steps.items()}


# --- 10^6 in a row


def measure_memory(episodes: int) -> list[Figures]:
    """What the process holds, looked at twenty times on the way to `episodes`."""
    every = max(1, episodes // 20)
    looks: list[Figures] = []

    def look(index: int) -> None:
        if index and index % every == 0:
            looks.append(_holdings() | {"episodes": index} | rollouts.counts)

    engine = ScriptedEngine(_every_fate)
    limits = Limits(batch_size=256, eta=1, late="drop", max_running=128)
    with tempfile.TemporaryDirectory() as folder:
        told = RunFolder(Path(folder))
        waits, transcripts = Waits(), Transcripts(told)
        options: dict[str, Any] = {"transcripts": transcripts, "waits": waits}
        options |= {"status": Status(told, waits), "keep": _is_kept}
        with Rollouts(engine, workflow(2), rows(look), limits, **options) as rollouts:
            rollouts.publish(update(0))
            for version in itertools.count(1):
                if len(looks) == 20:
                    break
                rollouts.next_batch()
                rollouts.publish(update(version))
                rollouts.stats()
        transcripts.close()
    return looks


def _every_fate(request: ModelRequest, serial: int) -> Sample:
    """One sample in 100 fails; one in 200 takes so long that its first tokens are then too old."""
    if serial % 100 == 1:
        return Sample(length=4, outcome="fail")
    return Sample(length=4, token_s=0.2 if serial % 200 == 50 else 0.0)


def _is_kept(episode: Episode) -> bool:
    return int(episode.row["answer"]) % 16 > 0


def _holdings() -> Figures:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * resource.getpagesize() / 2**20,
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


# --- the report


def apart(measure: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: what one measurement leaves behind is not the next one's."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, *arguments).result()


def http(script: Script, episodes: int, at_once: int) -> dict[str, Any]:
    columns: dict[str, Any] = {
        m.__name__: apart(m, script, at_once, episodes)
        for m in (over_http, bookkeeping, bare_client)
    }
    print(f"{'':24s}" + "".join(f"{name:>16s}" for name in columns))
    for name in columns["over_http"]:
        values = [column.get(name) for column in columns.values()]
        print(f"{name:24s}" + "".join(f"{'' if v is None else f'{v:.2f}':>16s}" for v in values))
    columns["one reply"] = apart(by_hand, script)
    print("one reply: " + ", ".join(f"{k} {v:.2f}" for k, v in columns["one reply"].items()))
    columns["seconds"] = script.seconds
    return columns


def memory(episodes: int) -> dict[str, Any]:
    began = time.monotonic()
    looks = apart(measure_memory, episodes)
    quarters = {"second quarter": looks[5:10], "last quarter": looks[15:]}
    found: dict[str, Mapping[str, float]] = {
        name: {key: statistics.mean(look[key] for look in part) for key in looks[0]}
        for name, part in quarters.items()
    }
    print(f"{'':24s}" + "".join(f"{name:>16s}" for name in found))
    for key in looks[0]:
        print(f"{key:24s}" + "".join(f"{part[key]:16.1f}" for part in found.values()))
    seconds = time.monotonic() - began
    print(f"{looks[-1]['episodes']:.0f} episodes in {seconds:.0f} s")
    return {**found, "looks": looks, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=["http", "memory"], help="default: both")
    parser.add_argument("--episodes", type=int, help="default: 5000 for http, 10^6 for memory")
    parser.add_argument("--at-once", type=int, default=5000, help="episodes in flight, for http")
    parser.add_argument("--seconds", type=float, nargs=2, default=[20.0, 80.0], help="of an answer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    result: dict[str, Any] = {}
    if args.part != "memory":
        result["http"] = http(
            Script(seconds=tuple(args.seconds)), args.episodes or 5_000, args.at_once
        )
    if args.part != "http":
        result["memory"] = memory(args.episodes or 1_000_000)
    save(args.out, "rollout-scale", result)


if __name__ == "__main__":
    main()
