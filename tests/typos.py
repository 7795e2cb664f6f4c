"""Twenty keys with one letter wrong, and the key that each must be answered with."""

TWENTY = [
    ("experiment_nme", "experiment_name"),
    ("trial_nam", "trial_name"),
    ("sed", "seed"),
    ("total_train_step", "total_train_steps"),
    ("tokeniser_path", "tokenizer_path"),
    ("actr.path", "actor.path"),
    ("actor.pth", "actor.path"),
    ("actor.dtyp", "actor.dtype"),
    ("actor.optimizer.lrr", "actor.optimizer.lr"),
    ("actor.optimiser.lr", "actor.optimizer.lr"),
    ("actor.optimizer.weight_decey", "actor.optimizer.weight_decay"),
    ("actor.mb_spec.max_token_per_mb", "actor.mb_spec.max_tokens_per_mb"),
    ("rollout.max_head_offpolicynes", "rollout.max_head_offpolicyness"),
    ("rolout.reward_fn", "rollout.reward_fn"),
    ("gconfig.n_sample", "gconfig.n_samples"),
    ("gconfig.temprature", "gconfig.temperature"),
    ("train_dataset.batchsize", "train_dataset.batch_size"),
    ("valid_dataset.pathh", "valid_dataset.path"),
    ("evaluator.freq_step", "evaluator.freq_steps"),
    ("stats_logger.wandb.mod", "stats_logger.wandb.mode"),
]
