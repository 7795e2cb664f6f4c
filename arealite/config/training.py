"""The settings of the trainer: model, batches, optimizer, algorithm. See schema.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from arealite.config.fields import opt, section


@dataclass(frozen=True)
class MicroBatchSpec:
    max_tokens_per_mb: int = opt(
        16384, "token budget of one forward and backward pass, padding included"
    )
    packing: bool = opt(
        True,
        "sequences side by side without padding; models whose attention cannot be told where one "
        "begins are padded all the same",
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    type: Literal["adamw", "sgd"] = opt("adamw", "AdamW, or SGD: no second moment, less memory")
    lr: float = opt(1e-5, "peak learning rate")
    weight_decay: float = opt(
        0.0, "not applied to vectors; decoupled (adamw), or added to the gradient (sgd)"
    )
    beta1: float = opt(0.9, "decay of the first moment (adamw)")
    beta2: float = opt(0.999, "decay of the second moment (adamw)")
    eps: float = opt(1e-8, "added to the root of the second moment (adamw)")
    momentum: float = opt(0.0, "share of the last step that is taken again (sgd)")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "polynomial"] = opt(
        "constant", "shape of the learning rate after warm-up"
    )
    lr_scheduler_power: float = opt(2.0, "power of the polynomial; 1 would be linear")
    warmup_steps: int | None = opt(None, "updates of linear warm-up; null: by the proportion")
    warmup_steps_proportion: float = opt(0.0, "warm-up as a share of all updates")
    min_lr_ratio: float = opt(0.0, "where all but constant end, as a share of lr")
    gradient_clipping: float = opt(1.0, "largest global gradient norm; 0: no clipping")


@dataclass(frozen=True)
class LoraConfig:
    """Only small matrices beside the weights learn; by peft (pip install arealite[lora])."""

    rank: int = opt(0, "inner width of the matrices, like 16; 0: all weights learn")
    alpha: float = opt(32.0, "what they add is multiplied by alpha / rank")
    targets: list[str] = opt(
        [], "names of the linear layers that have them, like q_proj; empty: all but the output"
    )


@dataclass(frozen=True)
class ActorConfig:
    """The policy being trained."""

    path: str = opt("", "Hugging Face folder or hub id of the model")
    dtype: Literal["float32", "bfloat16"] = opt(
        "bfloat16", "type of the weights; bfloat16 is trained through float32 master copies"
    )
    device: Literal["cpu", "cuda"] = opt("cpu", "where the trainer runs")
    threads: int | None = opt(None, "CPU threads of the trainer; null: its share of the cores")
    gradient_checkpointing: bool = opt(False, "recompute activations: less memory, more time")
    mb_spec: MicroBatchSpec = section(MicroBatchSpec, "micro-batches")
    share_prompts: bool = opt(True, "with packing, compute a group's common prompt once")
    optimizer: OptimizerConfig = section(OptimizerConfig, "optimizer and schedule")
    lora: LoraConfig = section(LoraConfig, "low-rank adapters")
    ppo_n_minibatches: int = opt(1, "optimizer updates in one pass over a batch")
    ppo_epochs: int = opt(1, "passes over a batch")
    algorithm: Literal[
        "grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "cispo", "sapo", "ppo"
    ] = opt(
        "grpo",
        "a preset of the settings below (docs/algorithms.md), each of which may be given beside "
        "it; --check shows what it comes to",
    )
    policy_loss: Literal["ppo", "gspo", "cispo", "sapo", "reinforce"] = opt(
        "ppo",
        "objective: the clipped token ratio, the clipped sequence ratio, a clipped weight before "
        "the log-probability, a soft gate on the ratio, or no ratio",
    )
    loss_agg_mode: Literal["token", "sequence", "prompt", "constant"] = opt(
        "token",
        "mean over all tokens of the batch, over sequences of their token means, over groups of "
        "their token means, or the sum over samples x gconfig.max_new_tokens",
    )
    eps_clip: float = opt(
        0.2, "the policy ratio is clipped at 1 - eps_clip; not read by sapo and reinforce"
    )
    eps_clip_higher: float | None = opt(None, "... and at 1 + this; null: eps_clip")
    c_clip: float | None = opt(
        None, "dual clip: a bad token's objective is at least this times its advantage; null: off"
    )
    sapo_tau_pos: float = opt(1.0, "steepness of SAPO's gate where the advantage is positive")
    sapo_tau_neg: float = opt(1.05, "... and where it is not")
    use_decoupled_loss: bool = opt(True, "separate behaviour and proximal policy (AReaL, eq. 5)")
    behave_imp_weight_mode: Literal[
        "token_truncate",
        "sequence_truncate",
        "token_mask",
        "sequence_mask",
        "geometric_mask",
        "disabled",
    ] = opt(
        "token_truncate",
        "correction for tokens that an older policy or an engine's other numbers sampled: weights "
        "proximal / behaviour cut at the cap (TIS) or masked outside floor and cap (IcePop, MIS), "
        "of tokens or sequences; sequences masked by their geometric mean; or none",
    )
    behave_imp_weight_cap: float = opt(5.0, "largest behaviour importance weight")
    behave_imp_weight_floor: float = opt(0.0, "... and smallest; only the masks have one")
    adv_baseline: Literal["group", "leave_one_out", "critic", "none"] = opt(
        "group",
        "taken off a reward: its group's mean, the mean of the group's others, what the critic "
        "expects at each token (GAE), or nothing",
    )
    discount: float = opt(1.0, "gamma: what a reward loses with each token (critic)")
    gae_lambda: float = opt(
        1.0, "1 waits for the whole reward, 0 believes the critic's next value (critic)"
    )
    adv_norm: Literal["group", "batch", "none"] = opt(
        "group",
        "advantages are divided by their group's standard deviation, centred and divided over all "
        "tokens of the batch, or left as they are",
    )
    kl_ctl: float = opt(
        0.0,
        "the KL to the reference model, times this, is added to the loss or taken off the rewards; "
        "0: no reference",
    )
    kl_in: Literal["loss", "reward"] = opt(
        "loss", "that KL is a part of the loss, or a price on each token of a sample"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = opt(
        "k3",
        "estimate of that KL at a token: the log-ratio (in the reward alone), half its square, or "
        "Schulman's k3 (GRPO)",
    )
    kl_target: float | None = opt(
        None,
        "kl_ctl goes up or down from batch to batch until samples have this KL, in nats per "
        "sample (in the reward alone); null: it is fixed",
    )
    kl_horizon: int = opt(
        10000, "... by at most a fifth of the batch's samples over this, as a share"
    )
    reward_scaling: float = opt(1.0, "rewards are scaled after the bias, for learning only")
    reward_bias: float = opt(0.0, "added to rewards, for learning only")
    reward_clip: float | None = opt(
        None, "scaled rewards are kept within -this and this, for learning only; null: no limit"
    )
    overlong_share: float | None = opt(
        None,
        "soft overlong punishment (DAPO): in this last share of gconfig.max_new_tokens the reward "
        "falls, for learning only; null: off",
    )
    overlong_penalty_factor: float = opt(1.0, "... by this at max_new_tokens")
    mask_truncated_completions: bool = opt(
        False, "samples cut off by their length leave the loss; their rewards stay in the baseline"
    )

    @property
    def updates_per_batch(self) -> int:
        """Optimizer updates in one version's step."""
        return self.ppo_n_minibatches * self.ppo_epochs

    @property
    def penalises_kl(self) -> bool:
        """Whether the KL to the reference is taken off the rewards."""
        return self.kl_ctl > 0 and self.kl_in == "reward"


@dataclass(frozen=True)
class CriticConfig:
    """The value model, where actor.adv_baseline is critic. Its type of weights, device and
    micro-batches are the actor's."""

    path: str = opt(
        "${actor.path}", "Hugging Face folder or hub id; its output layer becomes a scalar, from 0"
    )
    optimizer: OptimizerConfig = section(OptimizerConfig, "optimizer and schedule")
    ppo_n_minibatches: int = opt(1, "optimizer updates in one pass over a batch")
    ppo_epochs: int = opt(1, "passes over a batch")
    eps_clip_value: float | None = opt(
        0.2, "a value may move so far from what it was before the batch; null: without limit"
    )
    warmup_steps: int = opt(0, "versions in which only the critic learns, at the beginning")

    @property
    def updates_per_batch(self) -> int:
        """Optimizer updates in one version's step."""
        return self.ppo_n_minibatches * self.ppo_epochs


@dataclass(frozen=True)
class RefConfig:
    """The frozen model from which actor.kl_ctl keeps the policy; loaded where that is above 0."""

    path: str = opt(
        "${actor.path}", "Hugging Face folder or hub id; by default the policy as it starts"
    )
