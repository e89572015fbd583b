"""The folder of answers: written in chunks, resumed after a kill, and read by utterance.

A chunk is a `.safetensors` file (token ids and log-probabilities) and a `.jsonl` file (texts), which is written last. A killed
run leaves only whole chunks. The next run asks only what has no answer yet.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mtbi import files
from mtbi.answers.questions import Question
from mtbi.answers.teacher import Answer
from mtbi.answers.turns import StoredTurn, dialogue_turns, pad_teacher, turn_records
from mtbi.corpus import rendering
from mtbi.corpus.manifest import ManifestSlice, Utterance
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import BehaviourConfig

SETTINGS_FILE = "behaviour.json"
#: Every question was answered. It holds the `digest_of` the utterances; folders of earlier versions have an empty file.
DONE_FILE = "done"
#: What is not stored of a question.
NOT_STORED = {"transcript", "around", "max_new_tokens", "source", "unfiltered", "follow_ups"}
#: Settings of answers whose folder does not record them: it was made by an earlier version.
FORMER_SETTINGS = {"answers": "llm", "temperature": 0.0, "prompt_first": False, "reads": rendering.READS}


@dataclass(kw_only=True)
class StoredAnswer(StoredTurn):
    """A stored dialogue: its first turn, the turns after it, and what holds for all of them."""

    task: str
    wording: int  #: number among the task's wordings
    heldout: bool  #: the wording is kept out of training
    before_speech_ids: list[int]  #: between the opening of the user's turn and the speech: a prompt that comes first
    further: list[StoredTurn] = field(default_factory=list)  #: in order; the last one is supervised

    @property
    def turns(self) -> list[StoredTurn]:
        """All turns of the dialogue, in order."""
        return [self, *self.further]


def settings_record(config: BehaviourConfig, chat: ChatFormat) -> dict[str, object]:
    """The settings that all answers of a folder share."""
    return {
        **identity.facts_of(chat),
        "top_k": config.top_k if config.answers == "llm" else 0,
        "temperature": config.temperature,
        "answers": config.answers,
        "prompt_first": config.prompt_first,
        "reads": config.reads,
    }


def open_folder(out: Path, config: BehaviourConfig, chat: ChatFormat) -> None:
    """Write the settings into a new folder. Raises UserError for a folder with answers of another LLM or other settings."""
    path, wanted = out / SETTINGS_FILE, settings_record(config, chat)
    if path.exists():
        stored = read_settings(out)
        if other := other_settings(stored, wanted):
            listed = ", ".join(f"{key}: {stored.get(key)}" for key in other)
            raise UserError(
                f"{out}: holds answers made with other settings ({listed}); choose another folder or delete this one."
            )
        if reason := identity.difference(stored, chat):
            raise UserError(
                f"{out}: holds answers made with other settings: {reason} than the recipe's; choose another folder or delete "
                "this one."
            )
    else:
        files.write_text(path, json.dumps(wanted, indent=1) + "\n")


def other_settings(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys in which two records of settings differ, without those of the dialogues (`identity.difference`).

    Only the last part of the LLM's path is compared: the same LLM may lie in another folder. Gold answers may lie beside the
    text LLM's answers, because the settings of the LLM's answers do not affect them.
    """
    gold = "gold" in (stored.get("answers"), wanted.get("answers"))
    compared = wanted.keys() - identity.FACTS - ({"answers", "top_k", "temperature"} if gold else set())
    other = [key for key in compared if stored.get(key, FORMER_SETTINGS.get(key)) != wanted[key]]
    if Path(str(stored["llm"])).name != Path(str(wanted["llm"])).name:
        other.append("llm")
    return sorted(other)


def read_settings(out: Path) -> dict[str, Any]:
    """The `settings_record` of the folder's answers. Raises UserError where the file is damaged."""
    try:
        settings = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not {"fingerprint", "llm", "top_k"} <= set(settings):
            raise ValueError("fingerprint, llm and top_k are not all in it")
    except ValueError as error:
        raise UserError(f"{out / SETTINGS_FILE}: damaged ({error}); delete the folder and run `mtbi behave` again.") from error
    return settings


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing into the folder. The lock ends with the process, also after `kill -9`.

    Raises UserError where another process holds the lock, and where the file system has no locks.
    """
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


def digest(read: str) -> str:
    """A hash by which what the text LLM read is recognised later: 16 hexadecimal digits."""
    return hashlib.sha256(read.encode()).hexdigest()[:16]


def digest_of(utterances: Iterable[Utterance]) -> str:
    """A hash by which a folder's utterances are recognised later: 64 hexadecimal digits."""
    hashed = hashlib.sha256()
    for utterance in utterances:
        hashed.update(f"{utterance.id}\n".encode(errors="surrogatepass"))
    return hashed.hexdigest()


def answered(out: Path) -> dict[tuple[str, str, int], str]:
    """(utterance, task, wording) of every answer in the folder: the digest of its transcript, empty where it is unknown."""
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


def next_chunk(out: Path) -> int:
    """The number of the next chunk to write."""
    return 1 + max((int(path.stem.split("-")[1]) for path in out.glob("chunk-*.jsonl")), default=-1)


def write_chunk(
    out: Path, number: int, pairs: list[tuple[Question, Answer]], texts: list[list[str]], left_out: list[str]
) -> None:
    """Write a chunk of dialogues. Its `.jsonl` is written last and makes it count.

    `texts` holds the answers of all turns of each. `left_out` holds the reason for which each dialogue is kept out of training;
    empty for those that are not.
    """
    stem = out / f"chunk-{number:06d}"
    turns = [turn for _, answer in pairs for turn in answer.turns]
    k = max(turn.topk_ids.shape[1] for turn in turns)
    padded = [pad_teacher(turn.topk_ids, turn.topk_logprobs, k) for turn in turns]
    tensors = {
        "ends": np.cumsum([sum(len(turn.ids) for turn in answer.turns) for _, answer in pairs]).astype(np.int64),
        "ids": np.concatenate([np.array(turn.ids, np.int32) for turn in turns]),
        "topk_ids": np.concatenate([ids for ids, _ in padded]),
        "topk_logprobs": np.concatenate([logprobs for _, logprobs in padded]),
    }
    with files.whole(stem.with_suffix(".safetensors")) as temporary:
        save_file(tensors, temporary)
    records = []
    for (question, answer), (text, *later), reason in zip(pairs, texts, left_out, strict=True):
        record = asdict(question) | {"answer": text, "truncated": answer.truncated, "about": digest(question.read)}
        if question.supervised:
            del record["supervised"]
        records.append({key: value for key, value in record.items() if key not in NOT_STORED})
        if question.follow_ups:
            records[-1]["further"] = turn_records(question, answer, later)
        if reason:
            records[-1]["left_out"] = reason
    files.write_text(stem.with_suffix(".jsonl"), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def other_transcript(folder: Path, utterance: str) -> UserError:
    """The error for answers about an earlier transcript of an utterance."""
    return UserError(
        f"{folder}: its answers about utterance {utterance} are about another transcript than the manifest's. Choose another "
        "folder for the answers, or delete this one."
    )


def parts_of(folder: Path) -> list[Path]:
    """The folder itself, or its parts made by `mtbi behave --part`. Raises UserError where there are none, or not all."""
    if (folder / SETTINGS_FILE).exists():
        return [folder]
    finished = {path.parent.name for path in folder.glob(f"part-*-of-*/{DONE_FILE}")}
    totals = sorted({int(name.rsplit("-", 1)[1]) for name in finished})
    if not finished:
        raise UserError(f"{folder}: no answers there; make them with `mtbi behave`.")
    if len(totals) > 1:
        several = " and ".join(f"part-*-of-{total}" for total in totals)
        raise UserError(f"{folder}: holds parts of different divisions, {several}; delete those that are not meant.")
    wanted = [str(part) for part in ManifestSlice(1, totals[0]).siblings()]
    if missing := sorted(set(wanted) - finished):
        raise UserError(
            f"{folder}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not finished; run `mtbi behave --part`."
        )
    return [folder / name for name in wanted]


def is_folder(folder: Path) -> bool:
    """Whether a folder was made by `mtbi behave`, in one piece or in parts."""
    return (folder / SETTINGS_FILE).exists() or any(folder.glob(f"part-*-of-*/{SETTINGS_FILE}"))


class AnswerStore:
    """The answers of a folder, or of its parts, by utterance. Raises UserError where the folder holds none.

    With `utterances` only the answers about those are kept in memory, and where one part is about exactly those, only this part
    is read.
    """

    def __init__(self, folder: Path | str, utterances: Collection[Utterance] | None = None) -> None:
        self.folder = Path(folder)
        folders = parts_of(self.folder)
        self.notes = [read_settings(part) for part in folders]  #: `settings_record` of each part
        self.note = self.notes[0]
        for part, settings in zip(folders, self.notes, strict=True):
            other = other_settings(self.note, settings) or identity.other_dialogues(self.note, settings)
            if other or identity.other_llm(self.note, settings):
                raise UserError(
                    f"{part}: made with other settings than {folders[0]}; delete it and run its `mtbi behave` again."
                )
        wanted = None if utterances is None else {utterance.id for utterance in utterances}
        if utterances is not None:
            about = digest_of(utterances)
            done = [part for part in folders if (part / DONE_FILE).exists()]
            folders = [part for part in done if (part / DONE_FILE).read_text(encoding="utf-8") == about] or folders
        self._rows: dict[str, list[tuple[Path, int, dict]]] = defaultdict(list)  # of each utterance: chunk, row, record
        self._chunk = lru_cache(maxsize=64)(open_chunk)
        self.kept: Counter[str] = Counter()  #: answers of each task that training may use
        self.left_out: Counter[tuple[str, str]] = Counter()  #: answers that it may not, by task and reason
        for path in (path for part in folders for path in sorted(part.glob("chunk-*.jsonl"))):
            for row, record in enumerate(read_lines(path)):
                if wanted is not None and record["utterance"] not in wanted:
                    continue
                if reason := record.get("left_out"):
                    self.left_out[record["task"], reason] += 1
                    continue
                self.kept[record["task"]] += 1
                self._rows[record["utterance"]].append((path.with_suffix(".safetensors"), row, record))

    @property
    def reads(self) -> str:
        """The recipe's `behaviour.reads` when the answers were made."""
        return str(self.note.get("reads", rendering.READS))

    def get(self, utterance: str, read: str | None = None) -> list[StoredAnswer]:
        """The answers about an utterance that training may use, in the order of task names; empty where there are none.

        Raises UserError where the text LLM had not read `read`, which is the transcript with the text around it. Earlier
        versions stored no digest of it, so their answers pass unchecked.
        """
        answers = []
        for path, row, record in self._rows.get(utterance, []):
            if read is not None and record.get("about", "") not in ("", digest(read)):
                raise other_transcript(self.folder, utterance)
            ends, chunk = self._chunk(path)
            span = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
            first, further = dialogue_turns(record, chunk, span)
            answers.append(
                StoredAnswer(
                    **vars(first),
                    task=record["task"],
                    wording=record["wording"],
                    heldout=record["heldout"],
                    before_speech_ids=record.get("lead_ids", []),
                    further=further,
                )
            )
        return sorted(answers, key=lambda answer: (answer.task, answer.wording))


def open_chunk(path: Path) -> tuple[np.ndarray, Any]:
    """The end of each answer's tokens in a chunk, `(answers,)`, and the open file. Only the rows asked for are read.

    Raises UserError where it is missing or damaged.
    """
    try:
        chunk = safe_open(path, framework="np")
        return chunk.get_tensor("ends"), chunk
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: missing or damaged ({error}); delete it and its .jsonl, and run the same `mtbi behave` again."
        ) from error
