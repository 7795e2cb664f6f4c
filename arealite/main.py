"""The trainer process: THE loop. `arealite.launch` starts it beside the inference servers."""

from __future__ import annotations

from collections.abc import Sequence

from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.assembly import open_rollouts
from arealite.config import Config
from arealite.data.batch import to_batch
from arealite.evaluation import Evaluation, HeldOutLoss
from arealite.run import open_run, run_trainer
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy


def train(config: Config, addresses: Sequence[str]) -> None:
    """Rows become episodes, episodes a batch, a batch a new policy, the policy new episodes."""
    algorithm, max_lag = PolicyGradient(config), config.rollout.max_trained_lag
    with open_run(config) as run, Policy.load(config, run.total_updates, run.recovered) as policy:
        with open_rollouts(run, addresses) as rollouts, run.commits(policy, rollouts) as commits:
            rollouts.publish(policy.export(policy.version))
            evaluation = Evaluation(run, rollouts)
            evaluation.begin(policy.version)
            for version in range(policy.version, run.total_versions):
                episodes = rollouts.next_batch()  # blocks; obeys the staleness rule
                batch = to_batch(episodes, algorithm, version, max_lag)
                stats = policy.update(batch, algorithm.loss)
                rollouts.publish(policy.export(version + 1))  # engines never drain
                run.record(version + 1, batch.stats | stats | rollouts.stats(), episodes)
                evaluation.start_if_due(version + 1)  # runs beside training
                commits.make_if_due(version + 1)  # written beside training
            evaluation.wait_for(run.total_versions)
        run.export(policy)


def finetune(config: Config, addresses: Sequence[str] = ()) -> None:
    """Supervised fine-tuning: rows of prompt and completion become batches, batches a model."""
    with open_run(config) as run, Policy.load(config, run.total_updates, run.recovered) as policy:
        held_out = HeldOutLoss(run, policy)
        with run.commits(policy) as commits:
            held_out.record_if_due(policy.version)
            versions = range(policy.version, run.total_versions)
            for version, batch in zip(versions, run.sft_batches(), strict=False):
                stats = policy.update(batch, cross_entropy)
                policy.version = version + 1
                run.record(version + 1, batch.stats | stats)
                held_out.record_if_due(version + 1)
                commits.make_if_due(version + 1)
        run.export(policy)


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m arealite.main --config x.yaml key=value ...`."""
    run_trainer(lambda c, addresses: (finetune if c.mode == "sft" else train)(c, addresses), argv)


if __name__ == "__main__":
    main()
