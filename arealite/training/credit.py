"""From what a sample is worth to what each of its tokens is worth, where a model has a say."""

from __future__ import annotations

from dataclasses import replace

from arealite.algorithms.advantages import gae, whitened
from arealite.config import Config
from arealite.data.batch import Batch
from arealite.training.critic import Critic


def credited(batch: Batch, critic: Critic, config: Config) -> Batch:
    """The batch with the critic's values, an advantage for each token, and the critic's targets.

    What a sample is worth is earned at its last token. Tokens that are too old to be trained are a
    sample's first ones, and an advantage depends on nothing that lies before it.
    """
    actor = config.actor
    values = critic.values(batch.samples)
    advantages, samples = [], []
    for sample, of_sample in zip(batch.samples, values, strict=True):
        rewards = [*[0.0] * (len(of_sample) - 1), sample.advantages[-1]]
        advantages.append(gae(rewards, of_sample, actor.discount, actor.gae_lambda))
    scaled = advantages
    if actor.adv_norm == "batch":
        scaled = whitened(advantages, [[1] * len(a) for a in advantages])
    for sample, v, a, s in zip(batch.samples, values, advantages, scaled, strict=True):
        returns = [one + other for one, other in zip(a, v, strict=True)]
        samples.append(replace(sample, advantage=s, values=v, returns=returns))
    return replace(batch, samples=samples)
