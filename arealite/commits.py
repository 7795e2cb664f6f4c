"""A run's state on its way into a checkpoint, and what a run goes on with after a crash."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from arealite import stopping
from arealite.checkpoints.changes import plain
from arealite.checkpoints.resume import state_of
from arealite.checkpoints.store import Store
from arealite.crash import crash_point
from arealite.data.rows import Rows
from arealite.errors import CheckpointError, ConfigError, Preempted
from arealite.ledger import AccountError, Ledger
from arealite.rollout.door import Rollouts
from arealite.rollout.snapshot import Snapshot, from_lines, to_lines
from arealite.telemetry.run_folder import sync
from arealite.telemetry.trace import span
from arealite.training.policy import Policy
from arealite.training.state import PolicyState, save_trainer

if TYPE_CHECKING:  # it is above: it owns the files
    from arealite.run import Run

Moment = dict[str, Any]
"""What a checkpoint keeps of the run's files: sequence, account (of the ledger), positions."""


class Commits:
    """Use it as a context, inside the rollouts': leaving it makes the last checkpoint, also where
    the run was asked to stop. After any other error the one before counts.

    Training stands still only while the state is copied to memory. A disk that refuses costs an
    alarm; the next due version tries again. Raises CheckpointError where the last one of a run
    that has ended cannot be written.
    """

    def __init__(self, run: Run, policy: Policy, rollouts: Rollouts | None = None) -> None:
        self._run, self._policy, self._rollouts = run, policy, rollouts
        self._store = Store(run.folder.checkpoints, run.status.alarm)
        self._version = run.first_version if run.recovered else -1  # of the newest checkpoint
        self._at = time.monotonic()
        self._writing: Future[None] | None = None
        self._is_owed = False
        self._refused = 0
        """How many checkpoints could not be written."""

    def __enter__(self) -> Commits:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if stopping.is_urgent() or not (error is None or isinstance(error, Preempted)):
            return
        self._run.status.set(phase="saving")
        self._wait()
        if self._rollouts is not None and not self._rollouts.is_whole:
            self._run.status.alarm(
                "stopped between two versions, while episodes of the older one ran: a "
                "deterministic run goes on from the checkpoint before"
            )
        elif self._version < self._policy.version:
            self._make(self._policy.version)
            self._wait()
        if error is None and self._version < self._policy.version:
            raise CheckpointError(
                f"the last checkpoint, of version {self._policy.version}, could not be written "
                "(status.json has the reason); make room and start the run again to write it"
            )
        crash_point("shutdown.committed")

    def make_if_due(self, version: int) -> None:
        """Call it when all of this version is told. Raises Preempted where the run is asked to
        stop: then leaving the context keeps this version."""
        stopping.check()
        if self._refused:
            self._run.timed["counts/checkpoints_refused"] = float(self._refused)
        self._is_owed = self._is_owed or self._is_due(version)
        if self._is_owed and version < self._run.total_versions and not self._is_writing():
            self._make(version)

    def _is_due(self, version: int) -> bool:
        config = self._run.config
        every = (config.recover.freq_steps, config.saver.freq_steps)
        is_late = time.monotonic() - self._at >= config.recover.freq_secs
        return is_late or any(n and version % n == 0 for n in every)

    def _is_writing(self) -> bool:
        """Never two at a time: each holds a copy of everything."""
        return self._writing is not None and not self._writing.done()

    def _make(self, version: int) -> None:
        started = self._at = time.monotonic()
        self._is_owed = False
        with span("copy a checkpoint"):
            state, (snapshot, moment) = self._policy.state(), self._rollouts_at(version)
        self._run.timed["time/checkpoint_s"] = time.monotonic() - started
        crash_point("checkpoint.copied")
        self._writing = Future()
        # A daemon: a disk that hangs must not keep a run alive that was ended.
        threading.Thread(
            target=self._write, args=(state, snapshot, moment), name="checkpoint", daemon=True
        ).start()

    def _rollouts_at(self, version: int) -> tuple[Snapshot | None, Moment]:
        if self._rollouts is None:
            return None, self._run.moment()
        return self._rollouts.snapshot(version, self._run.moment)

    def _wait(self) -> None:
        """Until what is being written is; as long as recover.timeout_s allows."""
        if self._writing is None:
            return
        seconds = self._run.config.recover.timeout_s
        with self._run.waits.on("disk", "a checkpoint", seconds):
            try:
                self._writing.result(seconds)
            except TimeoutError:
                self._run.status.alarm(f"a checkpoint was not written in {seconds:g} s")

    def _write(self, state: PolicyState, snapshot: Snapshot | None, moment: Moment) -> None:
        assert self._writing is not None
        try:
            with span("write a checkpoint", "checkpoints"):
                self._write_all(state, snapshot, moment)
            self._version = state.version
        except Exception as error:  # a disk refuses, or a library does; the run can go on
            self._refused += 1
            self._run.status.alarm(
                f"the checkpoint of version {state.version} could not be written ({error}); the "
                "one before stays valid, and the next is tried"
            )
        finally:
            self._writing.set_result(None)

    def _write_all(self, state: PolicyState, snapshot: Snapshot | None, moment: Moment) -> None:
        run = self._run
        for name in moment["positions"]:
            path = run.folder.path / name
            if path.exists():
                sync(path)
        fields = state_of(plain(run.config), moment["sequence"], moment["positions"])
        with self._store.writing(state.version, fields) as folder:
            card = run.card(state.version) if run.is_kept(state.version) else ""
            self._policy.write(state, run.tokenizer, folder, card)
            save_trainer(state, folder)
            if snapshot is not None:
                with open(folder / "rollouts.jsonl", "w", encoding="utf-8") as file:
                    file.writelines(to_lines(snapshot))
                (folder / "ledger.json").write_text(json.dumps(moment["account"]) + "\n")
        if run.ledger is not None:
            run.ledger.committed(state.version, moment["sequence"])
        crash_point("checkpoint.committed")
        self._store.retain(run.config.recover.keep, run.kept_models())


def planned(run: Run) -> tuple[Ledger, Rows, Snapshot]:
    """The account of the rows, those that are still to do, and what is done and not trained."""
    found, snapshot = run.recovered, Snapshot()
    path, n_rows, alarm = run.folder.ledger, len(run.rows), run.status.alarm
    order = run.config.seed, run.config.train_dataset.shuffle
    if found is None:
        run.ledger = ledger = Ledger(path, n_rows, alarm)
    else:
        try:
            state = json.loads((found.path / "ledger.json").read_text())
            ledger = Ledger(path, n_rows, alarm, state, found.state["sequence"])
            lines = iter((found.path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines())
            snapshot = from_lines(lines, Rows(run.rows, *order).row)
        except (OSError, ValueError, AccountError) as error:
            raise CheckpointError(f"{found.path} cannot be read: {error}") from None
        if ledger.account.settled.rows != n_rows:
            raise ConfigError(
                f"train_dataset.path: it had {ledger.account.settled.rows} rows and has {n_rows}; "
                "a run goes on with the same rows: set it back, or give another trial_name"
            )
        run.ledger = ledger
        crash_point("recovery.ledger_read")
    first = sorted(snapshot.running, key=lambda sample_id: snapshot.running[sample_id])
    rows = Rows(
        run.rows,
        *order,
        first=first,
        is_done=ledger.account.is_known,
        epoch=ledger.account.settled.whole,
    )
    return ledger, rows, snapshot
