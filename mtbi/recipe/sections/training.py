"""The sections `loss` and `train`."""

# ruff: noqa: RUF009  # `setting` copies lists and mappings
from __future__ import annotations

from dataclasses import dataclass

from mtbi.recipe.fields import setting


@dataclass
class LossConfig:
    """What makes the speech LLM imitate the text LLM."""

    ce: float = setting(0.0, "weight of the cross-entropy on the stored answers")
    kl: float = setting(1.0, "weight of the Kullback-Leibler divergence from the stored top-k teacher")
    chunk: int = setting(1024, "answer positions whose full-vocabulary logits are computed at once", minimum=1)
    kernel: str = setting(
        "auto",
        "kernel of the cross-entropy: `auto` (Liger's on a GPU where liger-kernel is installed and kl is 0), `chunked`",
        choices=("auto", "chunked"),
    )
    task_weights: dict[str, float] = setting({}, "weight of each answer token by task; 1 for tasks that are not named")
    later_tokens: int = setting(0, "how many tokens after the next one are predicted too, by small trained heads; 0 = none")
    gold_ce: float = setting(0.0, "weight of the cross-entropy of answers without a stored teacher; 0 = that of ce")
    alignment: float = setting(
        0.0, "weight of the alignment loss: the adapter's output against the embeddings of the spoken tokens"
    )
    alignment_tokens: int = setting(8192, "lowest token ids that this loss tells the spoken tokens apart from; 0 = all ids")


@dataclass
class TrainConfig:
    """Optimisation, evaluation and checkpoints."""

    steps: int = setting(1000, "global steps", minimum=1)
    learning_rate: float = setting(1e-3, "peak learning rate")
    encoder_learning_rate: float = setting(0.0, "peak learning rate of a trained encoder's own weights; 0 = learning_rate")
    encoder_lora_learning_rate: float = setting(
        0.0, "peak learning rate of the encoder's LoRA; 0 = that of its own weights (encoder_learning_rate)"
    )
    hidden_learning_rate: float = setting(
        0.0, "peak learning rate of the adapter's layers below its output layer; 0 = learning_rate"
    )
    llm_learning_rate: float = setting(0.0, "peak learning rate of the LLM's own weights; needed with model.llm_trainable")
    llm_lora_learning_rate: float = setting(0.0, "peak learning rate of the LLM's LoRA; 0 = learning_rate")
    new_tokens_learning_rate: float = setting(0.0, "peak learning rate of new tokens' rows; 0 = learning_rate")
    min_learning_rate: float = setting(0.0, "learning rate at the end of the cosine")
    alignment_steps: int = setting(0, "first steps, which train on the alignment loss alone: the LLM is not run")
    alignment_learning_rate: float = setting(0.0, "peak learning rate of these steps, for all parts; 0 = learning_rate")
    warmup_steps: int = setting(50, "steps of linear warm-up")
    beta1: float = setting(0.9, "decay of AdamW's first moment")
    beta2: float = setting(0.98, "decay of AdamW's second moment")
    weight_decay: float = setting(0.01, "AdamW's weight decay")
    grad_clip: float = setting(1.0, "largest gradient norm")
    start: str = setting(
        "auto",
        "a new run's adapter: `solved` = its output layer fitted to the words' embeddings, `random`, or `auto` (solved where "
        "shards have word times)",
        choices=("auto", "solved", "random"),
    )
    start_utterances: int = setting(300, "utterances that the solved start reads", minimum=1)
    start_rounds: int = setting(
        3, "solutions of the solved start, each of which places the words' tokens for the next one", minimum=1
    )
    start_silence: str = setting(
        " ",
        "text whose embedding an adapter frame without a token gets (solved start, alignment loss); empty = the mean of all",
    )
    start_silence_weight: float = setting(0.3, "weight of such frames in the solved start; that of a frame with a token is 1")
    start_penalty: float = setting(1e-4, "ridge penalty of the solved start, as a share of the mean diagonal")
    spike_factor: float = setting(
        10.0, "a loss above this multiple of the last 100 steps' median (at least 0.05) makes a bad step; 0 = never"
    )
    max_bad_steps: int = setting(
        10, "bad steps in a row before a checkpoint is put back; steps without a finite loss or a target count too", minimum=1
    )
    max_rollbacks: int = setting(
        3, "times that a checkpoint may be put back before the run ends; a gradient that is not finite puts one back too"
    )
    hang_seconds: float = setting(
        1800.0, "seconds without progress of a process after which the watchdog ends the run; 0 = never"
    )
    log_every_steps: int = setting(10, "steps between two lines of the log", minimum=1)
    loggers: list[str] = setting([], "further destinations of the numbers: `jsonl`, `wandb`, `mlflow`, or an installed one")
    eval_every_steps: int = setting(200, "steps between two evaluations; 0 = never")
    eval_utterances: int = setting(64, "utterances in the periodic evaluation")
    sample_dialogues: int = setting(4, "dialogues written to TensorBoard at each evaluation")
    checkpoint_every_steps: int = setting(200, "steps between two checkpoints", minimum=1)
    keep_last: int = setting(2, "newest checkpoints to keep, besides the best", minimum=1)
    copy_to: str = setting(
        "", "address for copies of checkpoints and TensorBoard files, such as s3://bucket/run1; empty = no copies"
    )
    new_data: str = setting(
        "refuse",
        "for a checkpoint made with other data or another plan: `refuse` it, or keep its weights and begin a `new_epoch`",
        choices=("refuse", "new_epoch"),
    )
