"""When held-out sets are played, and what becomes of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from arealite import stopping
from arealite.crash import crash_point
from arealite.data.rows import load_rows
from arealite.rollout.door import Evaluating, Rollouts
from arealite.telemetry.metrics import evaluation_keys, series
from arealite.telemetry.trace import span
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy, to_samples

if TYPE_CHECKING:  # it is above: it owns what is told
    from arealite.run import Run


class Evaluation:
    """Held-out evaluations: before and after training waited for, in between beside it."""

    def __init__(self, run: Run, rollouts: Rollouts) -> None:
        self._run, self._rollouts = run, rollouts
        self._open: dict[int, Evaluating] = {}

    def start_if_due(self, version: int) -> None:
        """Collects what has ended; starts one every evaluator.freq_steps versions."""
        for done in [v for v, future in self._open.items() if future.done()]:
            self._collect(done)
        every = self._run.config.evaluator.freq_steps
        if every and version % every == 0 and version < self._run.total_versions:
            self._start(version)

    def begin(self, version: int) -> None:
        """Before training it is waited for; where the run goes on, what a crash has cut off is
        played again."""
        if version == 0:
            self.wait_for(version)
        else:
            self.start_if_due(version)

    def wait_for(self, version: int) -> None:
        """Evaluates this version and waits, so that its number is of this version alone."""
        if not self._run.config.valid_dataset.path:
            return
        self._run.status.set(phase="evaluating")
        self._start(version)
        with span("wait for evaluations"):
            for open_version in list(self._open):
                self._collect(open_version)

    def _start(self, version: int) -> None:
        is_wanted = self._run.config.valid_dataset.path and not stopping.is_asked()
        if is_wanted and version not in self._run.judged and version not in self._open:
            self._open[version] = self._rollouts.evaluate(version)
            crash_point("evaluation_start")

    def _collect(self, version: int) -> None:
        result = self._open.pop(version).result()
        crash_point("evaluation_end")
        self._run.record_evaluation(version, result)


class HeldOutLoss:
    """The evaluation of mode: sft: the mean loss of the held-out completions' tokens."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self._run, self._policy = run, policy
        dataset, self._samples = run.config.valid_dataset, []
        if dataset.path:
            rows = load_rows(dataset, "valid_dataset")
            self._samples = to_samples(rows, run.tokenizer, dataset.max_length, "valid_dataset")

    def record_if_due(self, version: int) -> None:
        """Before and after training, and every evaluator.freq_steps versions; once for each."""
        every, last = self._run.config.evaluator.freq_steps, self._run.total_versions
        is_due = version in (0, last) or (every and version % every == 0)
        if self._samples and is_due and version not in self._run.judged:
            self._run.status.set(phase="evaluating")
            with span("held-out loss"):
                loss = self._policy.loss_of(self._samples, cross_entropy)
            self._run.record_evaluation(version, {"eval/valid/loss": loss})


def scores_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Of the versions with an evaluation; the higher, the better."""
    key, sign = next(iter(evaluation_keys(rows).values()), ""), 1.0
    if not key:
        key, sign = "eval/valid/loss", -1.0
    versions, values = series(rows, key)
    return dict(zip(versions, (sign * value for value in values), strict=True))
