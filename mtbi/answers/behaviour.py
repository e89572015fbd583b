"""The behaviour to imitate: the text LLM's answers to task prompts about each transcript, made once and kept beside the audio.

Answers are written in chunks, each a `.safetensors` file (token ids and log-probabilities) and a `.jsonl` file (texts)
that appears last. A killed run leaves only whole chunks; the next one asks what is still unanswered and nothing twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from mtbi import files, text_units
from mtbi.answers import task_library
from mtbi.answers.teacher import Answer, Teacher
from mtbi.corpus.manifest import Part, Utterance
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig

NOTE = "behaviour.json"
DONE = "done"  # an empty file: everything was answered
#: What notes that lack a setting were made with.
FORMER = {"answers": "llm", "temperature": 0.0, "prompt_first": False}
CHUNK_BATCHES = 4  # batches that are written together: what a kill can cost


@dataclass
class Behaviour:
    """One prompt about one transcript and the text LLM's answer."""

    task: str
    wording: int  #: number among the task's wordings
    heldout: bool  #: the wording is kept out of training
    prompt: str
    before_speech_ids: list[int]  #: between the opening of the user's turn and the speech: a prompt that comes first
    after_speech_ids: list[int]  #: everything between the speech and the answer
    answer: str
    answer_ids: list[int]  #: with the end token unless the answer was cut off
    truncated: bool
    topk_ids: np.ndarray  #: (answer tokens, k) int32
    topk_logprobs: np.ndarray  #: (answer tokens, k) float16
    gold: str | None = None  #: the right answer, where the corpus knows one


@dataclass(frozen=True)
class Request:
    """One question to ask."""

    utterance: str
    task: str
    wording: int
    prompt: str
    lead_ids: list[int]
    prompt_ids: list[int]
    heldout: bool
    transcript: str
    gold: str | None
    max_new_tokens: int

    @property
    def key(self) -> tuple[str, str, int]:
        """A wording of a task is asked once about an utterance."""
        return self.utterance, self.task, self.wording


def chosen_tasks(config: BehaviourConfig) -> list[task_library.Task]:
    """The tasks to ask. Raises UserError for unknown ones, and where none has wordings of the wanted kind."""
    tasks = task_library.select(task_library.load(config.library), config.tasks)
    tasks = [task for task in tasks if task.choices(config.wordings)]
    if not tasks:
        raise UserError(f"behaviour.tasks: none of the tasks has {config.wordings} wordings")
    return tasks


def draw_requests(
    utterance: Utterance, tasks: list[task_library.Task], config: BehaviourConfig, chat: ChatFormat, seed: int
) -> list[Request]:
    """The questions about one utterance; they depend only on the seed and the utterance's id, not on other utterances."""
    rng = random.Random(hashlib.sha256(f"{seed} {utterance.id}".encode()).digest())
    chosen = rng.sample(tasks, min(config.per_utterance or len(tasks), len(tasks)))
    requests = []
    for task in chosen:
        choices = task.choices(config.wordings)
        for wording in rng.sample(choices, min(config.wordings_per_task, len(choices))):
            lead, suffix = chat.around_speech(task.wordings[wording], config.prompt_first)
            requests.append(
                Request(
                    utterance.id,
                    task.name,
                    wording,
                    task.wordings[wording],
                    lead,
                    suffix,
                    wording >= task.training_wordings,
                    utterance.text,
                    utterance.answers.get(task.name),
                    task.max_new_tokens or config.max_new_tokens,
                )
            )
    return requests


def note_of(config: BehaviourConfig, chat: ChatFormat) -> dict[str, object]:
    """What all answers of a folder have in common."""
    return {
        **identity.facts_of(chat),
        "top_k": config.top_k if config.answers == "llm" else 0,
        "temperature": config.temperature,
        "answers": config.answers,
        "prompt_first": config.prompt_first,
    }


def open_folder(out: Path, config: BehaviourConfig, chat: ChatFormat) -> None:
    """Make the folder's note, or refuse a folder that holds answers of another LLM or other settings."""
    path, note = out / NOTE, note_of(config, chat)
    if path.exists():
        found = read_note(out)
        if other := other_settings(found, note):
            settings = ", ".join(f"{key}: {found.get(key)}" for key in other)
            raise UserError(
                f"{out}: holds answers made with other settings ({settings}); choose another folder or delete this one."
            )
        if reason := identity.difference(found, chat):
            raise UserError(
                f"{out}: holds answers made with other settings: {reason} than the recipe's; choose another folder or delete "
                "this one."
            )
    else:
        files.write_text(path, json.dumps(note, indent=1) + "\n")


def other_settings(found: dict[str, Any], note: dict[str, Any]) -> list[str]:
    """The settings in which two notes differ, apart from the dialogues (`identity.difference`).

    The same LLM may lie in another folder. Gold answers may lie beside the text LLM's, whose settings do not concern them.
    """
    gold = "gold" in (found.get("answers"), note.get("answers"))
    compared = note.keys() - identity.FACTS - ({"answers", "top_k", "temperature"} if gold else set())
    other = [key for key in compared if found.get(key, FORMER.get(key)) != note[key]]
    if Path(str(found["llm"])).name != Path(str(note["llm"])).name:
        other.append("llm")
    return sorted(other)


def read_note(out: Path) -> dict[str, Any]:
    """What `note_of` said when the folder's answers were made. Raises UserError where it is damaged."""
    try:
        note = json.loads((out / NOTE).read_text(encoding="utf-8"))
        if not isinstance(note, dict) or not {"fingerprint", "llm", "top_k"} <= set(note):
            raise ValueError("fingerprint, llm and top_k are not all in it")
    except ValueError as error:
        raise UserError(f"{out / NOTE}: damaged ({error}); delete the folder and run `mtbi behave` again.") from error
    return note


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder; the lock goes with the process, even by kill -9."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{out}: another `mtbi behave` is writing there; wait for it or choose another folder.") from error
        except OSError as error:  # Lustre without the mount option `flock`
            raise UserError(
                f"{out}: this file system has no locks ({error.strerror}), so two `mtbi behave` could mix answers. Choose "
                "a folder on another file system, or have it mounted with locks (Lustre: `flock`)."
            ) from error
        for left_over in out.glob(".chunk-*"):  # of a killed run
            left_over.unlink()
        yield


def digest(transcript: str) -> str:
    """What says later whether an answer is about the same transcript."""
    return hashlib.sha256(transcript.encode()).hexdigest()[:16]


def answered(out: Path) -> dict[tuple[str, str, int], str]:
    """(utterance, task, wording) of every answer in the folder, and the digest of its transcript, where it is known."""
    return {
        (line["utterance"], line["task"], line["wording"]): line.get("about", "")
        for path in sorted(out.glob("chunk-*.jsonl"))
        for line in read_lines(path)
    }


def read_lines(path: Path) -> list[dict]:
    """The records of a JSONL file. Raises UserError where it is damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete this chunk and run the same `mtbi behave` again.") from error


def write_chunk(out: Path, number: int, pairs: list[tuple[Request, Answer]], texts: list[str]) -> None:
    """Write a chunk of answers; its `.jsonl` file, which makes it count, comes last."""
    stem = out / f"chunk-{number:06d}"
    ends = np.cumsum([len(answer.ids) for _, answer in pairs])
    k = max(answer.topk_ids.shape[1] for _, answer in pairs)
    tensors = {
        "ends": ends.astype(np.int64),
        "ids": np.concatenate([np.array(answer.ids, np.int32) for _, answer in pairs]),
        "topk_ids": np.concatenate([answer.topk_ids.reshape(len(answer.ids), k) for _, answer in pairs]),
        "topk_logprobs": np.concatenate([answer.topk_logprobs.reshape(len(answer.ids), k) for _, answer in pairs]),
    }
    with files.whole(stem.with_suffix(".safetensors")) as temporary:
        save_file(tensors, temporary)
    records = []
    for (request, answer), text in zip(pairs, texts, strict=True):
        record = asdict(request) | {"answer": text, "truncated": answer.truncated, "about": digest(request.transcript)}
        records.append({key: value for key, value in record.items() if key not in ("transcript", "max_new_tokens")})
    files.write_text(stem.with_suffix(".jsonl"), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def generate(
    utterances: Iterable[Utterance],
    config: BehaviourConfig,
    teacher: Teacher | None,
    chat: ChatFormat,
    out: Path | str,
    seed: int = 1,
) -> int:
    """Ask everything that is still unanswered; returns how many answers were made.

    Raises UserError for unknown tasks, tasks without wordings of the wanted kind, a folder with answers made in another
    way, or one that another process is filling.
    """
    out, tasks = Path(out), chosen_tasks(config)
    with locked(out):
        open_folder(out, config, chat)
        done = answered(out)
        wanted: Iterable[Request] = (
            request for utterance in utterances for request in draw_requests(utterance, tasks, config, chat, seed)
        )
        asked = []
        for request in wanted:
            if request.key not in done:
                asked.append(request)
            elif done[request.key] not in ("", digest(request.transcript)):
                raise other_transcript(out, request.utterance)
        if config.answers == "gold":
            teacher, asked = None, with_gold(asked, done)
        written = ask(asked, config, teacher, chat, out)
        (out / DONE).touch()
        return written


def other_transcript(folder: Path, utterance: str) -> UserError:
    """The error for answers about what an utterance's transcript was before."""
    return UserError(
        f"{folder}: its answers about utterance {utterance} are about another transcript than the manifest's. Choose another "
        "folder for the answers, or delete this one."
    )


def with_gold(requests: list[Request], done: Mapping[tuple[str, str, int], str]) -> list[Request]:
    """The requests to which the corpus knows the right answer. Raises UserError where there is none at all."""
    known = [request for request in requests if request.gold is not None]
    if requests and not known and not done:
        raise UserError("behaviour.answers=gold: the manifest knows no right answer to any of these tasks (`answers`)")
    return known


def gold_answer(request: Request, chat: ChatFormat) -> Answer:
    """The corpus's right answer, as certain as can be: no other token has a probability."""
    ids = [*chat.answer_ids(request.gold or ""), chat.end_id]
    none = np.zeros((len(ids), 0))
    return Answer(ids, False, none.astype(np.int32), none.astype(np.float16))


def make_batches(requests: list[Request], batch_size: int) -> Iterator[list[Request]]:
    """Prompts of similar length together: little padding. Only answers with the same limit share a batch."""
    requests.sort(key=lambda r: (r.max_new_tokens, text_units.count(r.transcript) + text_units.count(r.prompt)))
    for _, group in groupby(requests, key=lambda r: r.max_new_tokens):
        same = list(group)
        yield from (same[start : start + batch_size] for start in range(0, len(same), batch_size))


def ask(requests: list[Request], config: BehaviourConfig, teacher: Teacher | None, chat: ChatFormat, out: Path) -> int:
    """Ask all requests and write the answers chunk by chunk; returns their number. Without a teacher, gold answers."""
    batch_size = config.batch_size
    number = 1 + max((int(path.stem.split("-")[1]) for path in out.glob("chunk-*.jsonl")), default=-1)
    waiting: list[tuple[Request, Answer]] = []
    written = 0
    with tqdm(total=len(requests), desc=f"{out.parent.name}: answers", unit="answer", disable=None) as bar:
        for batch in make_batches(requests, batch_size):
            if teacher:
                prompts = [chat.dialogue_ids(request.transcript, request.prompt, config.prompt_first) for request in batch]
                answers = teacher.answer(prompts, batch[0].max_new_tokens)
            else:
                answers = [gold_answer(request, chat) for request in batch]
            waiting += zip(batch, answers, strict=True)
            if len(waiting) >= CHUNK_BATCHES * batch_size or written + len(waiting) == len(requests):
                texts = [chat.decode(answer.ids) for _, answer in waiting]
                write_chunk(out, number, waiting, texts)
                number, written, waiting = number + 1, written + len(waiting), []
            bar.update(len(batch))
    return written


def parts_of(folder: Path) -> list[Path]:
    """The folder itself, or its parts made by `mtbi behave --part`. Raises UserError where there are none, or not all."""
    if (folder / NOTE).exists():
        return [folder]
    found = {path.parent.name for path in folder.glob(f"part-*-of-*/{DONE}")}
    totals = sorted({int(name.rsplit("-", 1)[1]) for name in found})
    if not found:
        raise UserError(f"{folder}: no answers there; make them with `mtbi behave`.")
    if len(totals) > 1:
        several = " and ".join(f"part-*-of-{total}" for total in totals)
        raise UserError(f"{folder}: holds parts of different divisions, {several}; delete those that are not meant.")
    wanted = [str(part) for part in Part(1, totals[0]).siblings()]
    if missing := sorted(set(wanted) - found):
        raise UserError(
            f"{folder}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not finished; run `mtbi behave --part`."
        )
    return [folder / name for name in wanted]


class BehaviourStore:
    """The answers of a folder, or of its parts, by utterance. Raises UserError where the folder holds none."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        folders = parts_of(self.folder)
        self.notes = [read_note(one) for one in folders]
        self.note = self.notes[0]
        for one, note in zip(folders, self.notes, strict=True):
            other = other_settings(self.note, note) or identity.other_dialogues(self.note, note)
            if other or identity.other_llm(self.note, note):
                raise UserError(
                    f"{one}: made with other settings than {folders[0]}; delete it and run its `mtbi behave` again."
                )
        self._places: dict[str, list[tuple[Path, int, dict]]] = defaultdict(list)
        self._chunk = lru_cache(maxsize=64)(open_chunk)
        for path in (path for one in folders for path in sorted(one.glob("chunk-*.jsonl"))):
            for row, record in enumerate(read_lines(path)):
                self._places[record["utterance"]].append((path.with_suffix(".safetensors"), row, record))

    def get(self, utterance: str, transcript: str | None = None) -> list[Behaviour]:
        """The answers about an utterance, in the order of task names; empty where there are none.

        Raises UserError where they are about another `transcript`. Answers of earlier versions do not say what they are about.
        """
        found = []
        for path, row, record in self._places.get(utterance, []):
            if transcript is not None and record.get("about", "") not in ("", digest(transcript)):
                raise other_transcript(self.folder, utterance)
            ends, chunk = self._chunk(path)
            span = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
            found.append(
                Behaviour(
                    record["task"],
                    record["wording"],
                    record["heldout"],
                    record["prompt"],
                    record.get("lead_ids", []),
                    record["prompt_ids"],
                    record["answer"],
                    chunk.get_slice("ids")[span].tolist(),
                    record["truncated"],
                    chunk.get_slice("topk_ids")[span],
                    chunk.get_slice("topk_logprobs")[span],
                    record["gold"],
                )
            )
        return sorted(found, key=lambda behaviour: (behaviour.task, behaviour.wording))


def open_chunk(path: Path) -> tuple[np.ndarray, Any]:
    """Where each answer of a chunk ends, and the open file, of which only the rows asked for are read.

    Raises UserError where it is missing or damaged.
    """
    try:
        chunk = safe_open(path, framework="np")
        return chunk.get_tensor("ends"), chunk
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: missing or damaged ({error}); delete it and its .jsonl, and run the same `mtbi behave` again."
        ) from error
