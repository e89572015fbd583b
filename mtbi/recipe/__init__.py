"""One dataclass tree for a whole run. Values come, in rising order, from these defaults, a YAML recipe, `key=value` arguments.

A recipe is named by a path (`my/recipe.yaml`) or by the name of a shipped one (`demo`). A recipe may start from another with
`base: NAME_OR_PATH`. `load("demo", ["train.steps=100"])` returns the tree; unknown keys and wrong types raise UserError.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from inspect import getsource
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from mtbi import files, plugins
from mtbi.errors import UserError


@dataclass
class EncoderConfig:
    """The speech encoder."""

    path: str = "demo"  #: a Whisper, WavLM, HuBERT or wav2vec2 model (Hugging Face name or folder), `demo`, or `plugin:NAME`
    layer: int = -1  #: which hidden layer feeds the adapter: 0 = input of the first layer, -1 = the last
    trainable: bool = False  #: train the encoder's own weights


@dataclass
class AdapterConfig:
    """The trainable bridge from encoder frames to LLM embeddings."""

    kind: str = "mlp"  #: `mlp`, `swiglu` (Ultravox, vLLM), `conv` (strided), `qformer` (queries a window) or an installed one
    stack: int = 4  #: encoder frames that become one LLM position (for `qformer`: frames a window)
    hidden: int = 0  #: width of the middle layer; 0 = the LLM's hidden size
    queries: int = 1  #: `qformer` and installed kinds: queries, that is LLM positions, a window
    layers: int = 2  #: `qformer` only: transformer layers
    heads: int = 4  #: `qformer` only: attention heads


@dataclass
class LoraConfig:
    """Low-rank adaptation through peft; off while rank is 0."""

    rank: int = 0  #: rank of the update; 0 turns LoRA off
    alpha: float = 16.0  #: scale: the update is multiplied by alpha / rank
    dropout: float = 0.0  #: dropout on the update's input
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  #: names of the linear layers


@dataclass
class ModelConfig:
    """Frozen encoder + trainable adapter + frozen LLM."""

    llm: str = "demo"  #: Hugging Face name or folder of a causal LLM with a chat template; `demo` is the shipped one
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    llm_lora: LoraConfig = field(default_factory=LoraConfig)
    encoder_lora: LoraConfig = field(default_factory=LoraConfig)
    llm_fp8: bool = False  #: train with the frozen LLM's linear layers as 8-bit floats: half the memory, for H100 and newer
    attention: str = "auto"  #: `dense`, `flash`, `flex`, or `auto` (what suits the LLM: flash or flex on a GPU, else dense)
    activation_checkpointing: str = "auto"  #: recompute the LLM's activations: `on`, `off`, `auto` (where GPU memory needs it)
    compile: bool = False  #: compile the frozen LLM's layers (torch.compile); no faster on CPUs; not with ZeRO-3
    trust_remote_code: bool = False  #: run Python code that comes with the LLM or encoder; leave off unless you have read it


def in_use(model: ModelConfig) -> ModelConfig:
    """The same without what only training has: the LLM in its own precision, not compiled, with no kernels for packed rows."""
    return replace(model, llm_fp8=False, compile=False, attention="dense")


@dataclass
class BehaviourConfig:
    """Asking the text LLM about transcripts (`mtbi behave`)."""

    library: list[str] = field(default_factory=lambda: ["digits"])  #: task files: names of shipped or installed ones, or paths
    tasks: list[str] = field(default_factory=list)  #: task names; empty = every task of the library
    wordings: str = "train"  #: `train`, `heldout` or `all`
    per_utterance: int = 0  #: tasks asked about each utterance, drawn from the seed; 0 = all
    wordings_per_task: int = 1  #: in how many wordings each task is asked about an utterance
    answers: str = (
        "llm"  #: whose answers are imitated: `llm`, or `gold` for the corpus's right answers (supervised fine-tuning)
    )
    prompt_first: bool = False  #: the prompt stands before the speech, so branches share no audio; False = after it
    system_prompt: str = ""  #: system message before every dialogue; empty = none
    top_k: int = 32  #: teacher log-probabilities kept per answer token
    max_new_tokens: int = 128  #: longest answer; a longer one is cut off and tagged
    batch_size: int = 64  #: dialogues generated together
    backend: str = "transformers"  #: `transformers` or `vllm`
    temperature: float = 0.0  #: 0 = greedy
    template_variables: dict[str, Any] = field(default_factory=dict)  #: what the LLM's chat template is given, such as a date
    allow_other_teacher: bool = False  #: train on answers of an LLM of another size than model.llm, with the same vocabulary


@dataclass
class DataConfig:
    """Where the shards are."""

    shards: list[str] = field(default_factory=list)  #: folders or s3:// addresses made by `mtbi data shard`
    weights: dict[str, float] = field(default_factory=dict)  #: passes an epoch over an address of `shards`; 1 where not named
    eval_shards: list[str] = field(default_factory=list)  #: the same, for the periodic evaluation
    cache_dir: str = ""  #: local copies of remote shards; empty = beside the run
    cache_limit_gb: float = 0.0  #: oldest copies are dropped above this; 0 = no limit
    workers: int = 2  #: threads that decode audio on each rank
    prefetch: int = 4  #: micro-batches prepared ahead
    retries: int = 12  #: attempts to fetch a shard, with growing pauses: about four minutes in all
    unreadable: str = "stop"  #: an utterance that is lost or damaged for good: `stop` the run, or `skip` it and count
    max_unreadable_share: float = 0.01  #: of the utterances; where more are skipped, the run stops all the same


@dataclass
class InterleaveConfig:
    """Giving some spans of an utterance as text instead of sound."""

    share: float = 0.5  #: share of the utterances that are interleaved
    text_share_min: float = 0.1  #: share of the words given as text is drawn per utterance between these two
    text_share_max: float = 0.9
    span_words_min: int = 1  #: length of a span in words is drawn between these two
    span_words_max: int = 1
    cut: str = "slice"  #: `slice` = encode the utterance once, take the spans' frames; `encode` = encode each span on its own


@dataclass
class PlanConfig:
    """How utterances become packed rows and rows become steps."""

    row_tokens: int = 1024  #: LLM positions in a row
    rows_per_step: int = 4  #: rows in a global step, whatever the number of processes
    rows_per_micro_batch: int = 1  #: rows that one process computes at once
    utterances_per_row: int = 0  #: at most so many utterances in a row, taken in random order; 0 = as many as fit, best fit
    tasks: list[str] = field(default_factory=list)  #: train on these tasks of the shards only (names or patterns); empty = all
    hours: float = 0.0  #: train on so much of the shards' speech, drawn from the seed; 0 = all
    tasks_per_utterance: int = 4  #: branches that share one audio prefix; 0 = all that the shard holds
    window_samples: int = 8192  #: utterances shuffled and packed together (whole shards)
    passes_per_epoch: int = (
        1  #: passes over a small corpus shuffled together, so that few steps are short; 0 = what fills a window
    )
    max_audio_seconds: float = 30.0  #: longer utterances are left out, and counted


@dataclass
class LossConfig:
    """What makes the speech LLM imitate the text LLM."""

    ce: float = 0.0  #: weight of the cross-entropy on the stored answers
    kl: float = 1.0  #: weight of the Kullback-Leibler divergence from the stored top-k teacher
    chunk: int = 1024  #: answer positions whose full-vocabulary logits exist at once
    kernel: str = "auto"  #: of cross-entropy: `auto` (Liger's on a GPU where liger-kernel is installed and kl is 0), `chunked`
    task_weights: dict[str, float] = field(default_factory=dict)  #: weight of each answer token by task; 1 where not named


@dataclass
class TrainConfig:
    """Optimisation, evaluation and checkpoints."""

    steps: int = 1000  #: global steps
    learning_rate: float = 1e-3  #: peak
    encoder_learning_rate: float = 0.0  #: peak for a trained encoder's own weights; 0 = learning_rate
    min_learning_rate: float = 0.0  #: at the end of the cosine
    warmup_steps: int = 50  #: linear warm-up
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    grad_clip: float = 1.0  #: largest gradient norm
    spike_factor: float = 10.0  #: a loss this many times the last 100 steps' median (at least 0.05) is a bad one; 0 = none is
    max_bad_steps: int = 10  #: bad steps in a row (or without a finite loss or any target) before a checkpoint is put back
    max_rollbacks: int = 3  #: times a checkpoint may be put back (also after a gradient that is not finite) before the run ends
    hang_seconds: float = 1800.0  #: without progress of a process, after which the watchdog ends the run; 0 = never
    log_every_steps: int = 10
    eval_every_steps: int = 200  #: 0 = never
    eval_utterances: int = 64  #: utterances in the periodic evaluation
    sample_dialogues: int = 4  #: dialogues written to TensorBoard at each evaluation
    checkpoint_every_steps: int = 200
    keep_last: int = 2  #: newest checkpoints kept, besides the best
    copy_to: str = (
        ""  #: an address such as s3://bucket/run1 to which checkpoints and TensorBoard files are copied too; empty = none
    )
    new_data: str = "refuse"  #: a checkpoint made with other data or another plan: `refuse` it, or begin a `new_epoch` with it


@dataclass
class Recipe:
    """A whole run."""

    name: str = "run"
    run_dir: str = "runs/run"  #: checkpoints, logs and TensorBoard files
    seed: int = 1
    precision: str = "auto"  #: `fp32`, `bf16` or `auto` (bf16 on a GPU, fp32 elsewhere)
    model: ModelConfig = field(default_factory=ModelConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    data: DataConfig = field(default_factory=DataConfig)
    interleave: InterleaveConfig = field(default_factory=InterleaveConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


#: The values that a text field may take, by its path.
CHOICES = {
    "precision": ("auto", "fp32", "bf16"),
    "model.adapter.kind": ("mlp", "swiglu", "conv", "qformer"),
    "model.attention": ("auto", "dense", "flash", "flex"),
    "model.activation_checkpointing": ("auto", "on", "off"),
    "behaviour.wordings": ("train", "heldout", "all"),
    "behaviour.backend": ("transformers", "vllm"),
    "behaviour.answers": ("llm", "gold"),
    "data.unreadable": ("stop", "skip"),
    "interleave.cut": ("slice", "encode"),
    "train.new_data": ("refuse", "new_epoch"),
    "loss.kernel": ("auto", "chunked"),
}
#: Those of them that installed packages add values to, and the group of entry points.
OPEN = {"model.adapter.kind": plugins.ADAPTERS}
#: Whole numbers that must be at least 1. None but `model.encoder.layer` (-1 = the last) may be negative.
AT_LEAST_ONE = {
    "model.adapter.stack", "model.adapter.queries", "model.adapter.layers", "model.adapter.heads", "behaviour.max_new_tokens",
    "behaviour.batch_size", "behaviour.wordings_per_task", "data.workers", "data.prefetch",
    "interleave.span_words_min", "interleave.span_words_max",
    "plan.row_tokens", "plan.rows_per_step", "plan.rows_per_micro_batch", "plan.window_samples", "loss.chunk", "train.steps",
    "train.max_bad_steps", "train.log_every_steps", "train.checkpoint_every_steps", "train.keep_last",
}  # fmt: skip
SHARES = {"data.max_unreadable_share", "interleave.share", "interleave.text_share_min", "interleave.text_share_max"}
SHIPPED = Path(__file__).parent / "shipped"
RUN_DIR = "{run_dir}"


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with `key=value` overrides applied; `{run_dir}` in the fields of `data` stands for the run's folder.

    Raises UserError for an unknown recipe or key (with the nearest one), a wrong type or value, and unreadable YAML.
    """
    return _resolve(_layers(name_or_path, overrides))


def _resolve(layers: list[tuple[str, dict[str, Any]]]) -> Recipe:
    """The recipe that layers of values in rising order make."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = _merge(values, layer)
    recipe: Recipe = build(Recipe, values, "")
    _check(recipe)
    data = recipe.data
    data.shards = [place.replace(RUN_DIR, recipe.run_dir) for place in data.shards]
    data.eval_shards = [place.replace(RUN_DIR, recipe.run_dir) for place in data.eval_shards]
    data.weights = {place.replace(RUN_DIR, recipe.run_dir): weight for place, weight in data.weights.items()}
    data.cache_dir = data.cache_dir.replace(RUN_DIR, recipe.run_dir)
    return recipe


def _layers(name_or_path: str | Path, overrides: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Where values come from and which they are, in rising order."""
    return [*_read(_find(name_or_path), []), *((f"argument {override}", _override(override)) for override in overrides)]


def annotated(name_or_path: str | Path, overrides: Sequence[str] = ()) -> str:
    """The resolved recipe as YAML, with a comment on each line that says where its value comes from."""
    layers = _layers(name_or_path, overrides)
    origins = {path: origin for origin, layer in layers for path in _leaves(layer)}
    lines = _lines(to_dict(_resolve(layers)), origins, "")
    width = min(60, max(len(text) for text, _ in lines))
    return "\n".join(f"{text:{width}s}  # {origin}" if origin else text for text, origin in lines) + "\n"


def _lines(values: dict[str, Any], origins: dict[str, str], path: str) -> list[tuple[str, str]]:
    """(text, origin) of each line; a section's own line has none."""
    lines = []
    indent = "  " * path.count(".")
    for key, value in values.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and value:
            lines += [(f"{indent}{key}:", ""), *_lines(value, origins, f"{where}.")]
        else:
            told = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines.append((f"{indent}{key}: {told}", origins.get(where, "default")))
    return lines


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of all values that are no sections."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain dictionaries, lists and values."""
    return asdict(recipe)


def to_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe, as `load` reads it back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True, width=120)


def save(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe as YAML, in one piece."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, to_yaml(recipe))


def _find(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"{path}: no such recipe file")
        return path
    shipped = {file.stem: file for file in SHIPPED.glob("*.yaml")}
    if str(name_or_path) not in shipped:
        hint = _hint(str(name_or_path), sorted(shipped))
        raise UserError(f"no recipe is called {str(name_or_path)!r}: {hint} Or give the path of a .yaml file.")
    return shipped[str(name_or_path)]


def _read(path: Path, children: list[Path]) -> list[tuple[str, dict[str, Any]]]:
    """The values of the `base` of a recipe file, of that one's base, …, and its own last; each with the file's path."""
    if path.resolve() in children:
        raise UserError(f"{path}: `base` goes round in a circle: {' → '.join(map(str, [*children, path.resolve()]))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of `key: value` lines, this is a {type(values).__name__}")
    base = values.pop("base", None)
    try:
        build(Recipe, values, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    own = (path.name if path.parent == SHIPPED else str(path), values)
    if base is None:
        return [own]
    beside = path.parent / str(base)
    try:
        found = beside if beside.is_file() else _find(str(base))
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from None
    return [*_read(found, [*children, path.resolve()]), own]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        deep = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if deep else value
    return merged


def _override(override: str) -> dict[str, Any]:
    """One `a.b.c=value` as nested dictionaries; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: an override has the form key=value, for example train.steps=100")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not readable as YAML: {' '.join(str(error).split())}") from error
    *parents, last = key.split(".")
    single: dict[str, Any] = {last: value}
    for parent in reversed(parents):
        single = {parent: single}
    build(Recipe, single, "")  # unknown keys and wrong values are reported for this override alone
    return single


def build(kind: type, values: Any, path: str) -> Any:
    """An instance of the dataclass `kind` from nested dictionaries. `path` is where it sits in the recipe."""
    if values is None:  # a section whose lines are all commented out
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path} is a section with keys of its own ({', '.join(f.name for f in fields(kind))}), not {values!r}")
    hints = get_type_hints(kind)
    built = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise UserError(f"unknown key {where!r}: {_hint(str(key), hints, prefix=f'{path}.' if path else '')}")
        built[key] = build(hints[key], value, where) if is_dataclass(hints[key]) else _convert(hints[key], value, where)
    return kind(**built)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A plain value of the annotated type. YAML reads `1e-3` as text, so numbers may come as text."""
    if get_origin(hint) is list:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, for example [a, b], not {value!r}")
        return [_convert(get_args(hint)[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a mapping, for example {{a: 1}}, not {value!r}")
        return {str(key): _convert(get_args(hint)[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        if not isinstance(value, (str, bool, int, float)):
            raise UserError(f"{where} must be text, a number, true or false, not {value!r}")
        return value
    if isinstance(value, bool) and {"on", "off"} <= {*CHOICES.get(where, ())}:
        value = "on" if value else "off"  # YAML reads a bare on or off as true or false
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            example = "true or false" if hint is bool else 'text (write it in quotes, "…")'
            raise UserError(f"{where} must be {example}, not {value!r}")
        if value not in CHOICES.get(where, (value,)):
            if where in OPEN:
                plugins.locate(OPEN[where], str(value), CHOICES[where], where)
                return value
            raise UserError(f"{where} is {value!r}: {_hint(str(value), CHOICES[where])}")
        return value
    return _number(hint, value, where)


def _number(hint: type, value: Any, where: str) -> int | float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if not isfinite(number) or (hint is int and number != int(number)):
            raise ValueError
    except ValueError:
        raise UserError(f"{where} must be a {'whole ' if hint is int else ''}number, not {value!r}") from None
    if where in AT_LEAST_ONE and number < 1:
        raise UserError(f"{where} must be at least 1, not {value!r}")
    if number < 0 and where != "model.encoder.layer":
        raise UserError(f"{where} must not be negative, it is {value!r}")
    if where in SHARES and number > 1:
        raise UserError(f"{where} is a share between 0 and 1, it is {value!r}")
    return int(number) if hint is int else number


def _check(recipe: Recipe) -> None:
    """What concerns more than one field."""
    cut = recipe.interleave
    if cut.span_words_min > cut.span_words_max:
        raise UserError(
            f"interleave.span_words_min ({cut.span_words_min}) is more than interleave.span_words_max ({cut.span_words_max})"
        )
    if cut.text_share_min > cut.text_share_max:
        raise UserError(
            f"interleave.text_share_min ({cut.text_share_min}) is more than interleave.text_share_max ({cut.text_share_max})"
        )
    if unknown := sorted(set(recipe.data.weights) - set(recipe.data.shards)):
        raise UserError(
            f"data.weights: {unknown[0]} is not an address of data.shards ({', '.join(recipe.data.shards) or 'empty'})"
        )
    if recipe.loss.ce == recipe.loss.kl == 0:
        raise UserError("loss.ce and loss.kl are both 0, so nothing would be learnt: give one of them a weight")


def _hint(word: str, known: Iterable[str], prefix: str = "") -> str:
    names = list(known)
    nearest = get_close_matches(word, names, 1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else f"choose one of {', '.join(names)}."


@dataclass(frozen=True)
class FieldNote:
    """One line of the reference of recipe fields."""

    path: str
    kind: str
    default: Any
    note: str


@cache
def field_comments(module: str) -> dict[tuple[str, str], str]:
    """The comment beside each field of the classes of a module, by class and field; the source is read once."""
    found, kind = {}, ""
    for line in getsource(sys.modules[module]).splitlines():
        if match := re.match(r"class (\w+)", line):
            kind = match[1]
        elif match := re.match(r"    (\w+): .*?#: (.*)$", line):
            found[kind, match[1]] = match[2]
    return found


def reference(kind: type = Recipe, path: str = "") -> Iterator[FieldNote]:
    """Every field of the tree with its type, default and the comment beside it in this file."""
    default, comments = kind(), field_comments(kind.__module__)
    for name, hint in get_type_hints(kind).items():
        where = f"{path}.{name}" if path else name
        if is_dataclass(hint):
            yield from reference(hint, where)  # type: ignore[arg-type]
        else:
            label = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")
            yield FieldNote(where, label, getattr(default, name), comments.get((kind.__name__, name), ""))
