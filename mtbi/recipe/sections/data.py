"""The sections `behaviour`, `data`, `interleave` and `plan`: from answers and shards to the rows of a step."""

# ruff: noqa: RUF009  # `setting` copies lists and mappings
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mtbi.recipe.fields import setting


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
    reads: str = setting("{text}", "what the text LLM reads: {text} = the transcript, {gender} = that field of the manifest, …")
    hears: str = setting("{sound}", "what the speech LLM gets: {sound} = the recording, with any text and fields around it")
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
