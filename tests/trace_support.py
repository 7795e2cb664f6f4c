"""What tests of trace.json read in it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def read(path: Path) -> list[Event]:
    """The events, where the file is one strict JSON array."""
    events = json.loads(path.read_text())
    assert isinstance(events, list)
    return events


def spans(events: list[Event]) -> list[Event]:
    return [event for event in events if event["ph"] == "X"]


def named(events: list[Event], name: str) -> list[Event]:
    """The spans whose name begins so."""
    return [event for event in spans(events) if event["name"].startswith(name)]


def processes(events: list[Event]) -> dict[int, str]:
    return {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}


def overlap(a: Event, b: Event) -> bool:
    return bool(a["ts"] < b["ts"] + b["dur"] and b["ts"] < a["ts"] + a["dur"])


def check_nesting(events: list[Event]) -> None:
    """In each lane two spans are apart or one inside the other, and none ends before it begins."""
    lanes: dict[Any, list[Event]] = defaultdict(list)
    for event in spans(events):
        assert event["dur"] >= 0
        lanes[event["pid"], event["tid"]].append(event)
    for lane in lanes.values():
        around: list[int] = []  # the ends of the spans that are open
        for event in sorted(lane, key=lambda e: (e["ts"], -e["dur"])):
            while around and around[-1] <= event["ts"]:
                around.pop()
            end = event["ts"] + event["dur"]
            assert not around or end <= around[-1], event
            around.append(end)
