"""Countdown as a script of your own: a workflow class and the training loop in plain sight.

    python3 train.py --config train_config.yaml scheduler.type=local key=value ...

starts the inference servers and then this file again, as the trainer. What the loop does is what
`python -m arealite.launch` does; copy it where you want another loop, or rows of your own.
"""

import asyncio
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arealite import (
    Config,
    Evaluation,
    GenerationHyperparameters,
    InferenceEngine,
    ModelRequest,
    Policy,
    PolicyGradient,
    Trajectory,
    is_trainer,
    open_rollouts,
    open_run,
    run_trainer,
    to_batch,
)
from arealite.launch import launch

sys.path.insert(0, str(Path(__file__).parent))
from reward_score import compute_score


def get_countdown_dataset(dataset_path: str, rank: int, world_size: int) -> Any:
    """This trainer's share of the JSONL file that countdown.py makes."""
    from datasets import load_dataset  # slow to import, and the launcher never needs it
    from datasets.distributed import split_dataset_by_node

    dataset = load_dataset(path="json", split="train", data_files=dataset_path)
    return split_dataset_by_node(dataset, rank=rank, world_size=world_size)


class CountDownWorkflow:
    """Asks n times for an equation and scores each answer."""

    def __init__(self, gconfig: GenerationHyperparameters, tokenizer: Any) -> None:
        self.gconfig = gconfig.new_with_stop_and_pad_token_ids(tokenizer)
        self.tokenizer = tokenizer

    async def arun_episode(
        self, engine: InferenceEngine, data: Mapping[str, Any]
    ) -> list[Trajectory]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": data["query"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        req = ModelRequest(
            rid=uuid.uuid4().hex,
            input_ids=self.tokenizer.encode(text, add_special_tokens=False),
            gconfig=self.gconfig.new(n_samples=1),
        )
        n_samples = self.gconfig.n_samples
        resps = await asyncio.gather(*[engine.agenerate(req) for _ in range(n_samples)])
        trajectories = []
        for resp in resps:
            completions_str = self.tokenizer.decode(resp.output_tokens, skip_special_tokens=True)
            reward = compute_score(completions_str, data["answer"])
            trajectories.append(Trajectory.from_response(resp, reward, completions_str))
        return trajectories


def train(config: Config, addresses: Sequence[str]) -> None:
    algorithm, max_lag = PolicyGradient(config), config.rollout.max_trained_lag
    rows = get_countdown_dataset(config.train_dataset.path, rank=0, world_size=1)
    with (
        open_run(config, rows) as run,
        Policy.load(config, run.total_updates, run.recovered) as policy,
    ):
        with open_rollouts(run, addresses) as rollouts, run.commits(policy, rollouts) as commits:
            rollouts.publish(policy.export(policy.version))
            evaluation = Evaluation(run, rollouts)
            evaluation.begin(policy.version)
            for version in range(policy.version, run.total_versions):
                episodes = rollouts.next_batch()
                batch = to_batch(episodes, algorithm, version, max_lag)
                stats = policy.update(batch, algorithm.loss)
                rollouts.publish(policy.export(version + 1))
                run.record(version + 1, batch.stats | stats | rollouts.stats(), episodes)
                evaluation.start_if_due(version + 1)
                commits.make_if_due(version + 1)
            evaluation.wait_for(run.total_versions)
        run.export(policy)


if __name__ == "__main__":
    if is_trainer():
        run_trainer(train)
    else:
        launch(trainer=[__file__])
