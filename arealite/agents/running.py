"""A user's agent, called: as it is, on the event loop or in a thread, and with its own errors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
import traceback
from collections.abc import Callable
from typing import Any

from arealite.errors import ArealiteError, WorkflowError, words
from arealite.telemetry.quarantine import SAMPLE_ID


async def run_agent(agent: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What it returns. A plain function runs in a thread of its own.

    Raises WorkflowError with its row and its line for what it raises; this project's own errors
    (Unscorable) pass.
    """
    try:
        if _is_async(agent):
            return await agent(*arguments, **named)
        returned = await _in_thread(lambda: agent(*arguments, **named))
        return await returned if inspect.isawaitable(returned) else returned
    except ArealiteError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything; only this episode is lost
        name = getattr(agent, "__qualname__", type(agent).__qualname__)
        raised = f"the agent {name} raised {words(error)} {_own_place(agent, error)}"
        raise WorkflowError(f"row {SAMPLE_ID.get()}: {raised}") from error


def _is_async(agent: Callable[..., Any]) -> bool:
    call = getattr(agent, "__call__", None)  # noqa: B004 - an object may be an agent, too
    return inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(call)


async def _in_thread(work: Callable[[], Any]) -> Any:
    """A daemon, of which there may be as many as episodes: one that never returns neither takes
    another's place nor outlives the run."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(context.run(work))
        except BaseException as error:  # it belongs to whoever awaits it
            future.set_exception(error)

    threading.Thread(target=run, name="agent", daemon=True).start()
    return await asyncio.wrap_future(future)


def _own_place(agent: Callable[..., Any], error: BaseException) -> str:
    """`(file, line n)` of the agent's own code: what raised is mostly the client's library."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        own = inspect.getsourcefile(inspect.unwrap(agent))
    except TypeError:  # an object
        own = inspect.getsourcefile(type(agent))
    last = next((f for f in reversed(frames) if f.filename == own), frames[-1])
    return f"({last.filename}, line {last.lineno})"
