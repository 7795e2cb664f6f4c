"""Every setting, its default and its meaning. Section names are AReaL's.

A field's text is its documentation: docs and error messages are made from it. A field is here
only if some code obeys it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from arealite.config.fields import opt, section
from arealite.config.training import ActorConfig, CriticConfig, RefConfig
from arealite.types import GenerationHyperparameters


@dataclass(frozen=True)
class PrepareConfig:
    """Something the run needs and can make: `run` is called when `makes` does not exist."""

    makes: str = opt("", "file or folder; when it exists the step is skipped")
    run: str = opt("", "command line; a leading `python` is this interpreter, no shell")
    timeout_s: float = opt(1800.0, "the step is ended after this many seconds")


@dataclass(frozen=True)
class RolloutConfig:
    """Episodes and the engines that serve them."""

    workflow: str = opt("workflows.rlvr:RLVRWorkflow", "pkg.mod:Class or path/file.py:Class")
    workflow_kwargs: dict[str, Any] = opt({}, "passed to the workflow's __init__ by name")
    reward_fn: str = opt(
        "",
        "pkg.mod:function or path/reward_score.py:compute_score; several: reward.functions",
    )
    backend: Literal["embedded", "sglang", "vllm"] = opt(
        "embedded", "what the inference servers are: our own, SGLang's, or vLLM's (docs/engines.md)"
    )
    n_servers: int = opt(1, "how many servers are launched")
    servers: list[str] = opt(
        [],
        "host:port of servers that run already: none is launched then; "
        "AREAL_LLM_SERVER_ADDRS (host:port,host:port) says the same",
    )
    python: str = opt(
        "", "interpreter of the environment that holds SGLang or vLLM; empty: this one"
    )
    tensor_parallel_size: int = opt(1, "GPUs of one server")
    server_args: list[str] = opt(
        [], "further words for each launched server's command line; what is given here wins"
    )
    weights_dir: str = opt(
        "",
        "folder in which new weights are published, for servers on other machines; empty: in "
        "this machine's memory",
    )
    device: Literal["cpu", "cuda"] = opt("cpu", "where the servers run")
    threads: int | None = opt(None, "CPU threads of one server; null: its share of the cores")
    max_running_requests: int = opt(64, "sequences that one server decodes together")
    max_head_offpolicyness: int = opt(2, "staleness bound: versions a trained token may be old")
    late: Literal["mask", "drop", "wait", "keep"] = opt(
        "mask",
        "tokens that are too old: left out of the loss, the episode dropped, nothing too old "
        "because batches keep the order of admission, or trained all the same",
    )
    max_concurrent_rollouts: int | None = opt(None, "episodes in flight; null: as staleness allows")
    update_mode: Literal["retract", "in_place"] = opt(
        "retract", "at a weight update, running samples recompute their cache or keep it"
    )
    concurrency: Literal["fixed", "adaptive"] = opt(
        "fixed",
        "episodes in flight: as many as allowed, or as the servers' queues show they can use",
    )
    context_length: int | None = opt(
        None,
        "longest sequence of tokens, prompts and answers of all turns; null: one prompt and one "
        "answer",
    )
    filters: list[str] = opt(
        [],
        "episodes that are not trained: equal_rewards, overlong, or should_accept functions as "
        "pkg.mod:function or path/file.py:function",
    )
    filtered: Literal["refill", "shrink"] = opt(
        "refill", "a filtered episode is replaced by another, or its batch is smaller (DAPO)"
    )
    episode_timeout_s: float | None = opt(
        None, "an episode that takes longer fails; null: no limit"
    )
    request_timeout_s: float = opt(600.0, "deadline of one request to a server")
    request_retries: int = opt(3, "how often a failed request is sent again")
    server_timeout_s: float = opt(
        30.0, "a server that answers nothing for so long is lost; it must be above one step's time"
    )
    setup_timeout_s: float = opt(
        300.0, "deadline for the servers to come up; exit 5 when later none serves for so long"
    )
    stall_timeout_s: float = opt(600.0, "exit 6 when nothing moves for so long; see stall.txt")

    @property
    def max_trained_lag(self) -> int | None:
        """The lag above which a token does not enter the loss; None: any lag is trained."""
        return None if self.late == "keep" else self.max_head_offpolicyness


@dataclass(frozen=True)
class RewardFunctionConfig:
    """One of several reward functions; the reward is the weighted sum of what they return."""

    path: str = opt("", "pkg.mod:function or path/file.py:function; or a class, built with kwargs")
    name: str = opt("", "its component: reward/<name> in the metrics; empty: the function's name")
    weight: float = opt(1.0, "what it returns is multiplied by this")
    kwargs: dict[str, Any] = opt({}, "handed to the function, or to the class's __init__, by name")
    timeout_s: float | None = opt(None, "time limit of its calls; null: reward.timeout_s")
    max_concurrent: int = opt(
        32, "calls of an `async def` that are under way at once; the others wait for their turn"
    )

    @property
    def component(self) -> str:
        """The component's name."""
        return self.name or self.path.rpartition(":")[2]


@dataclass(frozen=True)
class RewardConfig:
    """How the reward function is run.

    An `async def` always runs on the event loop. Inline, only timeout_s has a meaning beside the
    mode, and only for an `async def`: what runs in the trainer cannot be killed alone.
    """

    functions: list[RewardFunctionConfig] = opt(
        [], "several reward functions with weights, in place of rollout.reward_fn"
    )

    mode: Literal["pool", "inline"] = opt(
        "pool",
        "in worker processes that can be killed (0.1 to 0.3 ms per call), or in the trainer "
        "itself: for a function of your own that takes microseconds and cannot hang",
    )
    workers: int = opt(4, "worker processes, each with one call at a time")
    timeout_s: float = opt(
        10.0,
        "a call that takes longer is killed and its sample is left out; an `async def`, which "
        "always runs in the trainer, is cancelled",
    )
    memory_mb: int = opt(1024, "memory that a worker may take beyond what loading the file took")
    isolation: Literal["strict", "standard", "off"] = opt(
        "standard",
        "workers have no secrets in their environment, no network and no new processes; strict: "
        "also no files beyond Python's, the reward file's and a scratch folder, and a fresh "
        "worker for each call; off: none of it",
    )


@dataclass(frozen=True)
class DatasetConfig:
    path: str = opt("", "a .jsonl file, or a data set's hub id")
    name: str | None = opt(None, "configuration of a hub data set, as gsm8k's main; null: its only")
    split: str = opt("train", "split of a hub data set")
    batch_size: int = opt(32, "rows per batch; each row becomes gconfig.n_samples samples")
    shuffle: bool = opt(True, "a new order in every epoch, fixed by the seed")
    max_length: int = opt(1024, "longest prompt in tokens; in mode: sft prompt and completion")
    max_rows: int | None = opt(None, "use only the first rows; null: all")


@dataclass(frozen=True)
class EvaluatorConfig:
    """The held-out set is played before, during and after training; mode: sft takes its loss."""

    freq_steps: int | None = opt(None, "versions between evaluations; null: before and after only")
    n_samples: int = opt(1, "samples per held-out row")
    temperature: float | None = opt(None, "null: as in training")
    greedy: bool = opt(False, "take the likeliest token")
    success: float = opt(1.0, "a sample counts as solved when its reward reaches this")


@dataclass(frozen=True)
class SaverConfig:
    freq_steps: int | None = opt(
        None, "versions between models that are kept for good; null: only the last"
    )
    export: str = opt(
        "", "also write the last model there: a new or empty folder, or a former export"
    )


@dataclass(frozen=True)
class RecoverConfig:
    """What is kept so that a run can go on after a crash, and who does so (docs/reliability.md)."""

    mode: Literal["auto", "off", "required"] = opt(
        "auto",
        "a run that has not ended goes on from its newest checkpoint, if it has one; each start is "
        "a new run, and the older one is moved aside; or exit 4 where there is none to go on from",
    )
    freq_steps: int | None = opt(None, "versions between checkpoints; null: by freq_secs alone")
    freq_secs: float = opt(60.0, "a checkpoint at the first version that is so many seconds later")
    keep: int = opt(2, "newest checkpoints that are kept whole")
    keep_best: bool = opt(True, "the model of the best evaluation is kept as well")
    retries: int = opt(
        3, "how often a run that has ended with exit 5, 6, 8, 75 or a crash is started again"
    )
    timeout_s: float = opt(600.0, "a run that is asked to stop may save for so long")


@dataclass(frozen=True)
class WandbConfig:
    mode: Literal["disabled", "offline", "online"] = opt("disabled", "Weights & Biases")
    project: str = opt("arealite", "project")
    entity: str | None = opt(None, "team or user")
    name: str | None = opt(None, "run name; null: experiment/trial")
    group: str | None = opt(None, "group")
    tags: list[str] = opt([], "tags")


@dataclass(frozen=True)
class TensorBoardConfig:
    path: str | None = opt(None, "folder for event files, from the run folder on; null: none")


@dataclass(frozen=True)
class StatsLoggerConfig:
    wandb: WandbConfig = section(WandbConfig, "Weights & Biases")
    tensorboard: TensorBoardConfig = section(TensorBoardConfig, "TensorBoard")
    transcripts: bool = opt(True, "write every episode to transcripts.jsonl")
    trace: bool = opt(
        False,
        "write trace.json: requests, rewards, waits, training and publishing as spans, for "
        "ui.perfetto.dev (docs/seeing.md)",
    )


@dataclass(frozen=True)
class SchedulerConfig:
    type: Literal["local"] = opt("local", "where the processes run")
    grace_s: float = opt(10.0, "a process that was asked to stop is ended after this")
    restarts: int = opt(3, "how often each server that has died in mid-run is started again")


@dataclass(frozen=True)
class Config:
    """One run. `mode: sft` trains on prompt/completion rows; `mode: rl` on episodes."""

    experiment_name: str = opt("", "first half of the run's name")
    trial_name: str = opt("trial0", "second half: the run folder is fileroot/experiment/trial")
    fileroot: str = opt("runs", "where run folders are made")
    mode: Literal["rl", "sft"] = opt("rl", "reinforcement learning or supervised fine-tuning")
    seed: int = opt(1, "fixes the order of rows and all random streams")
    deterministic: bool = opt(
        False,
        "two runs are bit-identical, unless the workflow lets time decide (docs/staleness.md): a "
        "seed per sample, batches in order of admission, weights change when nothing runs; slower",
    )
    tokenizer_path: str = opt("${actor.path}", "tokenizer; by default the model's own")
    total_train_epochs: int = opt(1, "passes over the rows")
    total_train_steps: int | None = opt(None, "stop at this version; null: by the epochs")
    prepare: list[PrepareConfig] = opt([], "made in this order when absent")
    actor: ActorConfig = section(ActorConfig, "the policy")
    critic: CriticConfig = section(CriticConfig, "the value model")
    ref: RefConfig = section(RefConfig, "the reference model")
    rollout: RolloutConfig = section(RolloutConfig, "episodes and engines")
    reward: RewardConfig = section(
        RewardConfig, "several reward functions, and how they or rollout.reward_fn are run"
    )
    gconfig: GenerationHyperparameters = section(GenerationHyperparameters, "sampling in training")
    train_dataset: DatasetConfig = section(DatasetConfig, "rows to learn from")
    valid_dataset: DatasetConfig = section(DatasetConfig, "held-out rows; empty path: none")
    evaluator: EvaluatorConfig = section(
        EvaluatorConfig, "evaluation; in mode: sft of the loss, which freq_steps alone concerns"
    )
    saver: SaverConfig = section(SaverConfig, "saved models")
    recover: RecoverConfig = section(RecoverConfig, "checkpoints, from which a run goes on")
    stats_logger: StatsLoggerConfig = section(StatsLoggerConfig, "trackers")
    scheduler: SchedulerConfig = section(SchedulerConfig, "launching")
