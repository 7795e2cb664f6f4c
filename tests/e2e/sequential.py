"""The plainest loop there is: play a batch row by row, train on it, load the weights, repeat.

No door, buffer, runner or thread. Started by the launcher as a trainer, so that it has the same
server; test_deterministic compares what it learns with the asynchronous run at staleness 0.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence

from arealite import Config, GenerationHyperparameters
from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.data.batch import to_batch
from arealite.data.rows import Rows
from arealite.engines.client import RemoteEngine
from arealite.launch import launch
from arealite.loading import load_object
from arealite.processes import KEY, is_trainer
from arealite.rewards.scorer import Scorer
from arealite.rollout.runner import play
from arealite.rollout.seeds import SeededEngine
from arealite.run import open_run, run_trainer
from arealite.telemetry.waits import Waits
from arealite.training.policy import Policy
from arealite.types import Episode
from workflows.rlvr import RLVRWorkflow


async def learn(config: Config, addresses: Sequence[str]) -> None:
    algorithm = PolicyGradient(config)
    engine = RemoteEngine(addresses, Waits(), key=os.environ[KEY])
    with open_run(config) as run, Policy.load(config, run.total_updates) as policy:
        reward = Scorer(load_object(config.rollout.reward_fn), config.rollout.reward_fn)
        gconfig: GenerationHyperparameters = config.gconfig
        workflow = RLVRWorkflow(reward, gconfig, run.tokenizer)
        rows = iter(Rows(run.rows, config.seed, config.train_dataset.shuffle))
        await engine.wait_ready(60.0)
        await engine.update_weights(policy.export(0))
        for version in range(run.total_versions):
            episodes = []
            for sample_id, row in itertools.islice(rows, config.train_dataset.batch_size):
                seeded = SeededEngine(engine, config.seed, sample_id)
                played = await play(workflow, seeded, sample_id, row)
                episodes.append(Episode(sample_id, version, tuple(played), row))
            batch = to_batch(episodes, algorithm, version, 0)
            stats = policy.update(batch, algorithm.loss)
            await engine.update_weights(policy.export(version + 1))
            run.record(version + 1, batch.stats | stats, episodes)
        with run.commits(policy):  # the last checkpoint
            pass
    await engine.aclose()


if __name__ == "__main__":
    if is_trainer():
        run_trainer(lambda config, addresses: asyncio.run(learn(config, addresses)))
    else:
        launch(trainer=[__file__])
