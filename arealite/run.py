"""One run's surroundings: its folder, telemetry, rows, engines and evaluations.

The composition root: here the parts are built from the configuration, so that the loop in main.py
(or in a user's own script) shows nothing but the learning.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from arealite import stopping
from arealite.card import model_card
from arealite.checkpoints.export import check_export
from arealite.checkpoints.resume import goes_on, recover
from arealite.checkpoints.store import Checkpoint
from arealite.commits import Commits
from arealite.config import Config, to_yaml
from arealite.config.cli import load_from_argv
from arealite.crash import crash_point
from arealite.data.batch import Batch
from arealite.data.rows import load_rows
from arealite.errors import ArealiteError, CheckpointError, ConfigError, boundary
from arealite.evaluation import scores_of
from arealite.ledger import Ledger
from arealite.processes import ADDRESSES, follow_parent, is_trainer
from arealite.rollout.door import Rollouts
from arealite.telemetry.curves import draw_curves
from arealite.telemetry.lock import claimed
from arealite.telemetry.metrics import (
    Recorder,
    load_metrics,
    tensorboard_sink,
    wandb_sink,
)
from arealite.telemetry.pace import Pace
from arealite.telemetry.quarantine import Quarantine
from arealite.telemetry.run_folder import RunFolder, write_atomically
from arealite.telemetry.status import Status
from arealite.telemetry.summary import summarise
from arealite.telemetry.trace import Trace
from arealite.telemetry.transcripts import Transcripts
from arealite.telemetry.waits import Waits
from arealite.training.model import load_tokenizer
from arealite.training.policy import Policy
from arealite.training.sft import epochs, to_samples
from arealite.types import Episode

log = logging.getLogger("arealite.run")

MUCH = 0.05
"""Share of a batch that may be lost to its age without a warning."""


class Run:
    """What the loop needs to know and to tell. Made by open_run."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        recovered: Checkpoint | None = None,
        rows: Any = None,
    ) -> None:
        """recovered: the checkpoint from which the run goes on. rows: as in open_run."""
        self.config, self.folder, self.recovered = config, folder, recovered
        self._given_rows = rows
        self.first_version = recovered.version if recovered else 0
        self._trace: Trace | None = None
        if config.stats_logger.trace:
            self._trace = Trace(folder.trace, self._alarm, self.first_version)
            self._trace.install()
        self.waits = Waits(None if self._trace is None else self._trace.waited)
        self.status = Status(folder, self.waits)
        self.transcripts = (
            Transcripts(folder, alarm=self.status.alarm)
            if config.stats_logger.transcripts
            else None
        )
        wandb = config.stats_logger.wandb
        sink = wandb_sink(
            wandb.mode,
            project=wandb.project,
            entity=wandb.entity,
            name=wandb.name or f"{config.experiment_name}/{config.trial_name}",
            group=wandb.group,
            tags=wandb.tags,
            config={"yaml": to_yaml(config)},
            folder=folder.path,
        )
        board = tensorboard_sink(
            config.stats_logger.tensorboard.path, folder.path, alarm=self.status.alarm
        )
        self._recorder = Recorder(folder, [sink, board], alarm=self.status.alarm)
        if recovered is not None:
            self._recorder.resumed(recovered.version)
        self.judged = scores_of(load_metrics(folder.metrics))
        """The versions whose evaluation is known, and how good it was."""
        self.timed: dict[str, float] = {}
        """Metrics that go with the next version that is told."""
        self.ledger: Ledger | None = None
        self.quarantine = Quarantine(folder.quarantine, self.status.alarm)
        self._started: float | None = None
        self._pace = Pace()
        self.closing = ExitStack()
        """What ends with the run, beside its own files."""

    # --- what the configuration means for this run

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.config.tokenizer_path)

    @cached_property
    def rows(self) -> Any:
        rows = self._given_rows
        if rows is None:
            rows = load_rows(self.config.train_dataset, "train_dataset")
        if len(rows) < self.config.train_dataset.batch_size:
            raise ConfigError(
                f"train_dataset.batch_size is {self.config.train_dataset.batch_size}, but "
                f"{self.config.train_dataset.path} has only {len(rows)} rows"
            )
        return rows

    @cached_property
    def total_versions(self) -> int:
        """Where the run ends: total_train_steps, or the epochs' whole batches."""
        per_epoch = len(self.rows) // self.config.train_dataset.batch_size
        return self.config.total_train_steps or self.config.total_train_epochs * per_epoch

    @property
    def total_updates(self) -> int:
        """The actor's optimizer updates in the whole run; its learning-rate schedule ends there."""
        if self.config.mode == "sft":
            return self.total_versions
        learned = max(self.total_versions - self.config.critic.warmup_steps, 1)
        return learned * self.config.actor.updates_per_batch

    def sft_batches(self) -> Iterator[Batch]:
        """Endless batches of prompt/completion rows, from where the run goes on."""
        dataset = self.config.train_dataset
        samples = to_samples(self.rows, self.tokenizer, dataset.max_length, "train_dataset")
        batches = epochs(samples, dataset.batch_size, self.config.seed, dataset.shuffle)
        return islice(batches, self.first_version, None)

    # --- what the loop tells

    def record(
        self, version: int, metrics: Mapping[str, float], episodes: Sequence[Episode] = ()
    ) -> None:
        """One version's line in metrics.jsonl and the trackers; its episodes to the transcripts."""
        now = time.monotonic()
        if self._started is None:
            self._started = now - metrics.get("time/update_s", 0.0)
        done, left = version - self.first_version, self.total_versions - version
        eta = (now - self._started) / max(done, 1) * left
        self.status.set(phase="training", version=version, eta_s=round(eta, 1))
        timed, self.timed = self.timed, {}
        told = {**metrics, **timed, **self._accuracy(episodes), **self._pace.shares(metrics)}
        self._recorder.record(version, told)
        if self._trace is not None:
            self._trace.told(version, told)
        crash_point("metrics_written")
        self._watch_losses(version, metrics, len(episodes))
        if self.transcripts is not None and episodes:
            for episode in episodes:
                self.transcripts.write(
                    episode.sample_id,
                    episode.version,
                    "trained",
                    episode.trajectories,
                    query=dict(episode.row),
                    trained_version=version,
                )
            self.transcripts.flush()

    def _watch_losses(self, version: int, metrics: Mapping[str, float], trained: int) -> None:
        """What the staleness bound costs, or a step that was left out, should be an exception."""
        if left_out := int(metrics.get("train/skipped_updates", 0.0)):
            self._tell_left_out(version, left_out, trained)
            self.status.alarm(
                "NaN or inf in the loss or its gradient: the update was left out, and its batch is "
                f"in {self.folder.nonfinite}"
            )
        dropped = metrics.get("staleness/dropped_episodes", 0.0)
        masked = metrics.get("staleness/masked_tokens", 0.0)
        if dropped > MUCH * (dropped + trained) or masked > MUCH * metrics.get("rollout/tokens", 0):
            self.status.alarm(
                f"more than {MUCH:.0%} of a batch was too old to train: raise "
                "rollout.max_head_offpolicyness or lower rollout.max_concurrent_rollouts"
            )

    def _tell_left_out(self, version: int, updates: int, trained: int) -> None:
        """To the ledger, which counts the version's rows as trained. A row's samples may lie in
        several minibatches: all rows count, where one of the updates was left out."""
        if self.ledger is not None and trained:
            self.ledger.note("left_out", rows=trained, version=version, updates=updates)

    def _accuracy(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Share of the batch's samples that solved their row."""
        rewards = [t.reward for episode in episodes for t in episode.trajectories]
        if not rewards:
            return {}
        solved = sum(reward >= self.config.evaluator.success for reward in rewards)
        return {"rollout/accuracy": solved / len(rewards)}

    def record_evaluation(self, version: int, metrics: Mapping[str, float]) -> None:
        self._recorder.record(version, metrics)
        self.judged |= scores_of([{"version": version, **metrics}])
        if self.transcripts is not None:
            self.transcripts.flush()

    # --- what the run keeps

    def commits(self, policy: Policy, rollouts: Rollouts | None = None) -> Commits:
        """Makes this run's checkpoints, of this policy and of what the rollouts hold."""
        return Commits(self, policy, rollouts)

    def moment(self) -> dict[str, Any]:
        """How far the run's files and its ledger are, at this moment."""
        positions = {self.folder.metrics.name: self._recorder.position()}
        positions[self.folder.quarantine.name] = self.quarantine.position()
        if self.transcripts is not None:
            positions[self.folder.transcripts.name] = self.transcripts.position()
        sequence, account = (-1, None) if self.ledger is None else self.ledger.state()
        return {"sequence": sequence, "account": account, "positions": positions}

    def kept_models(self) -> set[int]:
        """The versions whose models are kept when their checkpoints are old."""
        saver, evaluator = self.config.saver.freq_steps, self.config.evaluator.freq_steps
        kept = set(range(0, self.total_versions, saver)) if saver else set()
        if self.config.recover.keep_best and self.config.valid_dataset.path:
            scores = dict(self.judged)  # the trainer's thread may add to it
            due = set(range(0, self.total_versions, evaluator)) if evaluator else set()
            kept |= due - scores.keys()  # one of them may turn out to be the best
            kept |= {max(scores, key=lambda v: (scores[v], v))} if scores else set()
        return kept

    def card(self, version: int) -> str:
        """The model card of this version, for its folder."""
        kwargs = self.config.rollout.workflow_kwargs
        is_chat = bool(kwargs.get("chat", True)) and bool(self.tokenizer.chat_template)
        column = "prompt" if self.config.mode == "sft" else kwargs.get("prompt_key", "query")
        rows = load_metrics(self.folder.metrics)
        return model_card(self.config, version, rows, self.rows[0].get(column), is_chat)

    def is_kept(self, version: int) -> bool:
        """Whether the model of this version is one for people, and not for a recovery alone."""
        every = self.config.saver.freq_steps
        return version == self.total_versions or bool(every and version % every == 0)

    def export(self, policy: Policy) -> None:
        """The last model, where saver.export asks for it. Raises CheckpointError."""
        if not self.config.saver.export:
            return
        self.status.set(phase="saving")
        try:
            folder, card = Path(self.config.saver.export), self.card(policy.version)
            policy.save(self.tokenizer, folder, card)
        except ArealiteError:
            raise
        except Exception as error:  # a disk refuses, in a library that has errors of its own
            raise CheckpointError(
                f"saver.export: {self.config.saver.export} cannot be written ({error}); the model "
                f"is in {self.folder.checkpoints / str(policy.version)}: make room, and give "
                f"python -m arealite.export {self.folder.path} --out {self.config.saver.export}"
            ) from None

    def _alarm(self, sentence: str) -> None:
        self.status.alarm(sentence)

    def close(self) -> None:
        self.closing.close()
        if self._trace is not None:
            self._trace.close()
        self._recorder.close()
        self.quarantine.close()
        if self.transcripts is not None:
            self.transcripts.close()
        if self.ledger is not None:
            self.ledger.close()


@contextmanager
def open_run(config: Config, rows: Any = None) -> Iterator[Run]:
    """Opens the run folder and telemetry; at the end draws the curves and writes the summary.

    rows: a script's own, in place of those of train_dataset: anything with a length whose items
    are mappings, the same ones in the same order when the run goes on.

    Where the folder holds a run, it goes on from its newest checkpoint (run.recovered) as
    recover.mode says, or that is moved aside; one in which another run is going on is refused.
    """
    if config.saver.export:
        check_export(Path(config.saver.export))  # before hours of work, not after
    folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)
    # What the launcher starts runs in the folder that it has claimed.
    with nullcontext() if is_trainer() else claimed(folder, lambda: goes_on(config, folder)):
        folder.create()
        with _opened(config, folder, rows) as run:
            yield run


@contextmanager
def _opened(config: Config, folder: RunFolder, rows: Any = None) -> Iterator[Run]:
    alarms: list[str] = []
    recovered, changed = recover(config, folder, alarms.append)
    for change in changed:
        log.warning("%s since the checkpoint; the run goes on with it", change)
    write_atomically(folder.config, to_yaml(config))
    run = Run(config, folder, recovered, rows)
    for alarm in alarms:
        run.status.alarm(alarm)
    run.status.set(
        phase="starting",
        version=run.first_version,
        total_versions=run.total_versions,
        mode=config.mode,
    )
    stopping.check()
    try:
        yield run
    except BaseException as error:
        sentence = str(error) if isinstance(error, ArealiteError) else repr(error)
        run.status.set(phase="failed", error=sentence)
        run.close()
        raise
    run.close()
    if not stopping.is_asked():  # seconds, which somebody waits for
        draw_curves(folder, staleness_bound=config.rollout.max_head_offpolicyness)
    run.status.set(phase="done", eta_s=0.0)
    run.status.flush()
    write_atomically(folder.summary, summarise(folder))


def run_trainer(
    train: Callable[[Config, Sequence[str]], None], argv: Sequence[str] | None = None
) -> None:
    """The outermost frame of a trainer process that the launcher started; does not return errors.

    The servers' addresses come from AREAL_LLM_SERVER_ADDRS.
    """
    follow_parent()
    stopping.listen()
    with ExitStack() as stack:
        stack.enter_context(boundary())
        config = load_from_argv(argv)
        addresses = [a for a in os.environ.get(ADDRESSES, "").split(",") if a]
        train(config, addresses)
