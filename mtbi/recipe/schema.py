"""The tree of settings of a whole run. Each field states its default, its meaning and its limits in one place."""

# ruff: noqa: RUF009  # `setting` copies lists and mappings
from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from mtbi import plugins


@dataclass(frozen=True)
class FieldRules:
    """What a field means, and which values it may take. Limits hold for each item of a list or mapping too."""

    note: str = ""  #: its line in `mtbi recipe fields`
    choices: tuple[str, ...] = ()  #: the words that a text field may be; empty = any text
    entry_points: str = ""  #: group of entry points in which installed packages add to `choices`
    minimum: float | None = 0  #: smallest number; None = any
    maximum: float | None = None  #: largest number; None = any


def setting(default: Any, note: str, **limits: Any) -> Any:
    """A dataclass field with its rules. A list or mapping given as `default` is copied for each instance."""
    metadata = {"rules": FieldRules(note, **limits)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EncoderConfig:
    """The speech encoder."""

    path: str = setting(
        "demo", "a Whisper, WavLM, HuBERT or wav2vec2 model (Hugging Face name or folder), `demo`, or `plugin:NAME`"
    )
    layer: int = setting(-1, "which hidden layer feeds the adapter: 0 = input of the first layer, -1 = the last", minimum=None)
    trainable: bool = setting(False, "train the encoder's own weights")
    beside: dict[str, EncoderConfig] = setting(
        {}, "further encoders by name; their features stand beside this one's, frame by frame"
    )


@dataclass
class AdapterConfig:
    """The trainable bridge from encoder frames to LLM embeddings."""

    kind: str = setting(
        "mlp",
        "`mlp`, `swiglu` (Ultravox, vLLM), `conv` (strided), `qformer` (queries a window) or an installed one",
        choices=("mlp", "swiglu", "conv", "qformer"),
        entry_points=plugins.ADAPTERS,
    )
    stack: int = setting(4, "encoder frames that become one LLM position (for `qformer`: frames a window)", minimum=1)
    hidden: int = setting(0, "width of the middle layer; 0 = the LLM's hidden size")
    queries: int = setting(1, "LLM positions for each window; `qformer` and installed kinds only", minimum=1)
    layers: int = setting(2, "transformer layers; `qformer` only", minimum=1)
    heads: int = setting(4, "attention heads; `qformer` only", minimum=1)


@dataclass
class LoraConfig:
    """Low-rank adaptation through peft; off while rank is 0."""

    rank: int = setting(0, "rank of the update; 0 = no LoRA")
    alpha: float = setting(16.0, "the update is multiplied by alpha / rank")
    dropout: float = setting(0.0, "dropout probability on the update's input")
    targets: list[str] = setting(["q_proj", "v_proj"], "names of the linear layers that get an update")


@dataclass
class ModelConfig:
    """Frozen encoder + trainable adapter + frozen LLM."""

    llm: str = setting("demo", "Hugging Face name or folder of a causal LLM with a chat template; `demo` is the shipped one")
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    llm_lora: LoraConfig = field(default_factory=LoraConfig)
    encoder_lora: LoraConfig = field(default_factory=LoraConfig)
    llm_fp8: bool = setting(
        False, "keep the frozen LLM's linear layers as 8-bit floats in training: half the memory, for H100 and newer"
    )
    attention: str = setting(
        "auto",
        "`dense`, `flash`, `flex`, or `auto` (what suits the LLM: flash or flex on a GPU, else dense)",
        choices=("auto", "dense", "flash", "flex"),
    )
    activation_checkpointing: str = setting(
        "auto",
        "recompute the LLM's activations in the backward pass: `on`, `off`, `auto` (where GPU memory needs it)",
        choices=("auto", "on", "off"),
    )
    compile: bool = setting(False, "compile the frozen LLM's layers (torch.compile); no faster on CPUs; not with ZeRO-3")
    trust_remote_code: bool = setting(
        False, "run Python code that comes with the LLM or encoder; leave off unless you have read it"
    )
    new_tokens: list[str] = setting([], "tokens to add to the LLM with trainable rows, such as <speaker1>")
    hidden_tokens: list[str] = setting([], "new tokens that the text of an answer does not show")


def in_use(model: ModelConfig) -> ModelConfig:
    """The model without what only training needs: 8-bit weights, compiled layers, attention kernels for packed rows."""
    return replace(model, llm_fp8=False, compile=False, attention="dense")


@dataclass
class BehaviourConfig:
    """Asking the text LLM about transcripts (`mtbi behave`)."""

    library: list[str] = setting(["digits"], "task files: names of shipped or installed ones, or paths")
    tasks: list[str] = setting([], "task names; empty = every task of the library")
    wordings: str = setting(
        "train", "which wordings of each task: `train`, `heldout` or `all`", choices=("train", "heldout", "all")
    )
    per_utterance: int = setting(0, "tasks asked about each utterance, drawn from the seed; 0 = all")
    wordings_per_task: int = setting(1, "wordings in which each task is asked about an utterance", minimum=1)
    answers: str = setting(
        "llm",
        "answers to imitate: `llm` = the text LLM's, `gold` = the corpus's right ones (supervised fine-tuning)",
        choices=("llm", "gold"),
    )
    prompt_first: bool = setting(False, "put the prompt before the speech, so that branches share no audio; False = after it")
    system_prompt: str = setting("", "system message before every dialogue; empty = none")
    top_k: int = setting(32, "teacher log-probabilities kept per answer token")
    max_new_tokens: int = setting(128, "longest answer in tokens; a longer one is cut off and marked", minimum=1)
    filter: list[str] = setting(
        [],
        "answers of the LLM that are kept apart, and never trained on: `empty`, `repetitive` (a phrase three times in a row), "
        "`truncated`, `script` (written in another script than the transcript)",
    )
    batch_size: int = setting(64, "dialogues generated together", minimum=1)
    tensor_parallel: int = setting(1, "GPUs over which vLLM splits the LLM", minimum=1)
    backend: str = setting(
        "transformers", "library that generates the answers: `transformers` or `vllm`", choices=("transformers", "vllm")
    )
    temperature: float = setting(0.0, "temperature of sampling; 0 = greedy")
    template_variables: dict[str, Any] = setting({}, "variables for the LLM's chat template, such as a date")
    allow_other_teacher: bool = setting(
        False, "accept answers of an LLM of another size than model.llm with the same vocabulary"
    )


@dataclass
class DataConfig:
    """Where the shards are."""

    shards: list[str] = setting([], "folders or s3:// addresses made by `mtbi data shard`")
    weights: dict[str, float] = setting(
        {}, "how often an epoch goes over each address of `shards`; 1 if an address is not named"
    )
    eval_shards: list[str] = setting([], "shards for the periodic evaluation")
    cache_dir: str = setting("", "folder for local copies of remote shards; empty = in the run's folder")
    cache_limit_gb: float = setting(0.0, "GB above which the oldest copies are deleted; 0 = no limit")
    workers: int = setting(2, "threads that decode audio on each rank", minimum=1)
    prefetch: int = setting(4, "micro-batches prepared ahead", minimum=1)
    retries: int = setting(12, "attempts to fetch a shard, with growing pauses; 12 take about four minutes")
    unreadable: str = setting(
        "stop",
        "for an utterance that is lost or damaged: `stop` the run, or `skip` and count it",
        choices=("stop", "skip"),
    )
    max_unreadable_share: float = setting(
        0.01, "share of the utterances that may be skipped; above it the run stops", maximum=1
    )


@dataclass
class InterleaveConfig:
    """Giving some spans of an utterance as text instead of sound."""

    share: float = setting(0.5, "share of the utterances that are interleaved", maximum=1)
    text_share_min: float = setting(
        0.1, "smallest share of an utterance's words given as text; the share is drawn per utterance", maximum=1
    )
    text_share_max: float = setting(0.9, "largest share of an utterance's words given as text", maximum=1)
    span_words_min: int = setting(1, "fewest words in a span; the length is drawn per span", minimum=1)
    span_words_max: int = setting(1, "most words in a span", minimum=1)
    cut: str = setting(
        "slice",
        "`slice` = encode the utterance once and take the spans' frames; `encode` = encode each span alone",
        choices=("slice", "encode"),
    )


@dataclass
class PlanConfig:
    """How utterances become packed rows and rows become steps."""

    row_tokens: int = setting(1024, "LLM positions in a row", minimum=1)
    rows_per_step: int = setting(4, "rows in a global step, whatever the number of processes", minimum=1)
    rows_per_micro_batch: int = setting(1, "rows that one process computes at once", minimum=1)
    utterances_per_row: int = setting(0, "most utterances in a row, taken in random order; 0 = as many as fit, by best fit")
    tasks: list[str] = setting([], "tasks of the shards to train on (names or patterns); empty = all")
    hours: float = setting(0.0, "hours of the shards' speech to train on, drawn from the seed; 0 = all")
    tasks_per_utterance: int = setting(4, "branches that share one audio prefix; 0 = all that the shard holds")
    window_utterances: int = setting(8192, "utterances shuffled and packed together (whole shards)", minimum=1)
    passes_per_epoch: int = setting(1, "passes over the corpus shuffled together as one epoch; 0 = as many as fill a window")
    max_audio_seconds: float = setting(30.0, "longer utterances are left out and counted")


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
    hidden_learning_rate: float = setting(
        0.0, "peak learning rate of the adapter's layers below its output layer; 0 = learning_rate"
    )
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


@dataclass
class Recipe:
    """A whole run."""

    name: str = setting("run", "name of the run")
    run_dir: str = setting("runs/run", "folder of checkpoints, logs and TensorBoard files")
    seed: int = setting(1, "seed of all random draws")
    precision: str = setting(
        "auto",
        "precision of weights and activations: `fp32`, `bf16` or `auto` (bf16 on a GPU, fp32 elsewhere)",
        choices=("auto", "fp32", "bf16"),
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    data: DataConfig = field(default_factory=DataConfig)
    interleave: InterleaveConfig = field(default_factory=InterleaveConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class FieldNote:
    """A field of the tree, as `mtbi recipe fields` prints it."""

    path: str
    kind: str
    default: Any
    note: str
    choices: tuple[str, ...] = ()


def reference(section: type = Recipe, path: str = "") -> Iterator[FieldNote]:
    """Every field below a section, with its type, default, meaning and choices."""
    for entry, hint in fields_of(section):
        field_path = f"{path}.{entry.name}" if path else entry.name
        if is_dataclass(hint):
            yield from reference(hint, field_path)  # type: ignore[arg-type]
        else:
            rules = rules_of(entry)
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            yield FieldNote(field_path, type_name(hint), default, rules.note, rules.choices)


def fields_of(section: type) -> list[tuple[Any, Any]]:
    """(field, type) of each field of a section, in order."""
    hints = get_type_hints(section)
    return [(entry, hints[entry.name]) for entry in fields(section)]


def rules_of(entry: Any) -> FieldRules:
    """The rules of a dataclass field; one without any of its own has the default ones."""
    return entry.metadata.get("rules", FieldRules())


def type_name(hint: Any) -> str:
    """A field's type as people write it: `int`, `list[str]`, `dict[str, EncoderConfig]`."""
    if get_origin(hint) is None:
        return hint.__name__
    return f"{get_origin(hint).__name__}[{', '.join(map(type_name, get_args(hint)))}]"


#: The values that a text field may take, by its path.
CHOICES = {entry.path: entry.choices for entry in reference() if entry.choices}
