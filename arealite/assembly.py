"""The rollouts of a run, put together: engine client, reward, workflow, rows, held-out rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from arealite.commits import planned
from arealite.config import Config, DatasetConfig
from arealite.config.lengths import context_length
from arealite.config.logprobs import untrainable
from arealite.data.rows import load_rows
from arealite.engines.client import DIALECTS, RemoteEngine
from arealite.engines.dialect import Abilities
from arealite.errors import ArealiteError, ConfigError, words
from arealite.loading import load_workflow
from arealite.processes import KEY
from arealite.protocols import ChecksRows, Workflow
from arealite.rewards.opening import open_reward
from arealite.rewards.scorer import Kept, Scoring
from arealite.rollout.door import Rollouts
from arealite.rollout.filters import keep_of
from arealite.rollout.limits import limits_of
from arealite.types import GenerationHyperparameters

if TYPE_CHECKING:  # it is above: it owns the files
    from arealite.run import Run


def open_rollouts(run: Run, addresses: Sequence[str]) -> Rollouts:
    """The door to the episodes of this run, over the servers at these addresses (host:port)."""
    config = run.config
    if config.rollout.late == "keep" and not config.deterministic:
        run.status.alarm("rollout.late is keep: tokens of any age are trained, without a bound")
    quarantine = run.quarantine
    score: Scoring | None = None
    if config.rollout.reward_fn or config.reward.functions:
        score = run.closing.enter_context(open_reward(config, run.status.alarm, run.waits))
    workflow, eval_workflow = (
        _workflow(run, gconfig, None if score is None else Kept(score, quarantine, held_out))
        for gconfig, held_out in ((config.gconfig, False), (_eval_gconfig(config), True))
    )
    _check_first_row(workflow, run.rows, config.train_dataset, "train_dataset")
    held_out: list[tuple[str, Mapping[str, Any]]] = []
    if config.valid_dataset.path:
        rows = load_rows(config.valid_dataset, "valid_dataset")
        _check_first_row(eval_workflow, rows, config.valid_dataset, "valid_dataset")
        held_out = [(f"valid:{i}", row) for i, row in enumerate(rows)]
    ledger, rows, snapshot = planned(run)
    return Rollouts(
        _engine(run, addresses),
        workflow,
        rows,
        limits_of(config),
        keep=keep_of(config.rollout.filters),
        eval_workflow=eval_workflow,
        eval_rows=held_out,
        status=run.status,
        transcripts=run.transcripts,
        waits=run.waits,
        stall_report=run.folder.stall_report,
        more_counts=lambda: quarantine.counts,
        version=run.first_version,
        ledger=ledger,
        snapshot=snapshot,
    )


def _engine(run: Run, addresses: Sequence[str]) -> RemoteEngine:
    config = run.config
    return RemoteEngine(
        addresses,
        run.waits,
        DIALECTS[config.rollout.backend],
        request_timeout_s=config.rollout.request_timeout_s,
        request_retries=config.rollout.request_retries,
        server_timeout_s=config.rollout.server_timeout_s,
        setup_timeout_s=config.rollout.setup_timeout_s,
        update_mode=config.rollout.update_mode,
        decode=partial(run.tokenizer.decode, clean_up_tokenization_spaces=False),
        key=os.environ.get(KEY, ""),
        refusal=partial(_refusal, config.gconfig),
        alarm=run.status.alarm,
        tell=lambda servers: run.status.set(servers=servers),
        say=lambda sentence: print(sentence, flush=True),
    )


def _refusal(gconfig: GenerationHyperparameters, abilities: Abilities) -> str:
    """Why the trainer cannot learn from such a server's log-probabilities, or ""."""
    found = None if abilities.meaning is None else untrainable(abilities.meaning, gconfig)
    return "" if found is None else ": ".join(found)


def _workflow(run: Run, gconfig: GenerationHyperparameters, reward: Scoring | None) -> Workflow:
    rollout = run.config.rollout
    offered: dict[str, Any] = {
        "gconfig": gconfig,
        "tokenizer": run.tokenizer,
        "context_length": context_length(run.config),
    }
    if reward is not None:
        offered["reward_fn"] = reward
    return load_workflow(rollout.workflow, offered, rollout.workflow_kwargs)


def _check_first_row(workflow: Workflow, rows: Any, dataset: DatasetConfig, section: str) -> None:
    """One row is cheap, and what is misnamed is so in every row."""
    if not isinstance(workflow, ChecksRows):
        return
    try:
        workflow.check_row(rows[0])
    except Exception as error:  # a user's code may raise anything
        told = isinstance(error, ArealiteError | ValueError)
        reason = str(error) if told else words(error)
        raise ConfigError(f"{section}.path: {dataset.path}, row 0: {reason}") from None


def _eval_gconfig(config: Config) -> GenerationHyperparameters:
    evaluator = config.evaluator
    temperature = evaluator.temperature or config.gconfig.temperature
    return config.gconfig.new(
        n_samples=evaluator.n_samples, temperature=temperature, greedy=evaluator.greedy
    )
