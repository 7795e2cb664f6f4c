"""`python -m arealite.engines.embedded --model DIR`: a small server of SGLang's protocol."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys

import uvloop

from arealite.errors import ConfigError, boundary
from arealite.processes import follow_parent

_DEFAULT_CONTEXT = 4096


def say(sentence: str) -> None:
    """One log line."""
    print(f"embedded: {sentence}", file=sys.stderr, flush=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="arealite.engines.embedded", description=__doc__)
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    where.add_argument("--fd", type=int, help="an inherited socket that already listens")
    parser.add_argument("--threads", type=int, help="CPU threads of one operation")
    parser.add_argument("--max-running", type=int, default=64, help="sequences decoded at once")
    parser.add_argument("--max-waiting", type=int, default=4096, help="samples that may queue")
    parser.add_argument("--context-length", type=int, help="prompt and completion, in tokens")
    parser.add_argument("--prefill-tokens", type=int, help="prompt tokens between two steps")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: by device")
    parser.add_argument("--seed", type=int, help="of requests that bring none")
    parser.add_argument("--weight-version", default="0", help="the version served at the start")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="what a sequence computes does not depend on its batch (slower)",
    )
    args = parser.parse_args(argv)
    for name in ("threads", "max_running", "max_waiting", "context_length", "prefill_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, it must be at least 1")
    return args


def listening_socket(args: argparse.Namespace) -> socket.socket:
    """The inherited socket, or a new one. Raises ConfigError when it cannot be had."""
    try:
        if args.fd is not None:
            return socket.socket(fileno=args.fd)
        return socket.create_server((args.host, args.port), backlog=1024)
    except OSError as error:
        where = f"fd {args.fd}" if args.fd is not None else f"{args.host}:{args.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror}") from None


def main(argv: list[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then ends with exit code 0."""
    follow_parent()
    args = parse_args(argv)
    listener = listening_socket(args)
    # Imported late: bad arguments are answered at once, without waiting for torch.
    from arealite.engines.embedded.server import build, serve

    api = build(args, say, _DEFAULT_CONTEXT)

    async def until_stopped() -> None:
        stop = asyncio.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
        await serve(api, listener, stop, say)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_stopped())


if __name__ == "__main__":
    with boundary():
        main()
