"""The answers of an evaluation while it runs: a killed `mtbi evaluate` asks only what is not answered yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtbi import files
from mtbi.benchmark.dialogues import Dialogue, Turn
from mtbi.engine import checkpoint
from mtbi.metrics import CASCADE, TEXT_LLM
from mtbi.use.open_run import TrainedRun

UNFINISHED, FINISHED, REPORT = "answers.unfinished.jsonl", "answers.jsonl", "report.json"
#: Fields that asking fills in, beside `answers`.
MEASURED = ("token_hits", "token_divergence", "tokens", "heard")


def identity(run: TrainedRun) -> dict[str, Any]:
    """What answers depend on besides their questions: weights, LLM, dialogue format, precision."""
    weights = run.checkpoint / checkpoint.TRAINABLE
    digest = checkpoint.checksum(weights)[:16] if weights.is_file() else ""
    dtype = next(run.model.llm.parameters()).dtype
    return {"weights": digest, "llm": run.recipe.model.llm, "chat": run.chat.fingerprint, "precision": str(dtype)}


class SavedAnswers:
    """The folder's file of finished dialogues. Its first line says what the answers depend on."""

    def __init__(self, folder: Path, asked_of: dict[str, Any], recogniser: str = "", reuse: bool = False) -> None:
        """Read the file of a killed evaluation. Answers of another checkpoint, LLM or precision are left out.

        With `reuse`, the answers of a finished evaluation are read too. The recogniser's transcripts and the answers about
        them are read only if `recogniser` is the same.
        """
        self.path = folder / UNFINISHED
        self.header = {"asked_of": asked_of, "recogniser": recogniser}
        self.known: dict[tuple[Any, ...], Dialogue] = {}
        lines = _lines(self.path)
        if lines and lines[0].get("asked_of") == asked_of:
            self._read(lines[1:], same_recogniser=lines[0].get("recogniser") == recogniser)
        if reuse and (report := _lines(folder / REPORT)) and report[0].get("asked_of") == asked_of:
            self._read(_lines(folder / FINISHED), same_recogniser=report[0].get("recogniser") == recogniser)
        self._rewrite()

    def _read(self, records: Iterable[dict[str, Any]], same_recogniser: bool) -> None:
        for record in records:
            dialogue = Dialogue.from_record(record)
            if not same_recogniser:
                dialogue.heard = None
                dialogue.answers.pop(CASCADE, None)
                dialogue.cut_off = [source for source in dialogue.cut_off if source != CASCADE]
            self.known[_key(dialogue)] = dialogue

    def _rewrite(self) -> None:
        """Write what is known, so that a last line that was cut by a kill is gone."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records = [self.header, *map(asdict, self.known.values())]
        files.write_text(self.path, "".join(_line(record) for record in records))

    def restore(self, turns: Iterable[Turn]) -> None:
        """Give dialogues the answers that are known. Those about another transcript are left out."""
        for turn in turns:
            dialogue = turn.dialogue
            known = self.known.get(_key(dialogue))
            if known is None or known.transcript != dialogue.transcript:
                continue
            if dialogue.answers.get(TEXT_LLM) not in (None, known.answers.get(TEXT_LLM)):
                continue  # the shards were made again
            dialogue.answers = {**known.answers, **dialogue.answers}
            dialogue.cut_off = list(dict.fromkeys([*dialogue.cut_off, *known.cut_off]))
            for name in MEASURED:
                setattr(dialogue, name, getattr(known, name))

    def add(self, dialogues: Iterable[Dialogue]) -> None:
        """Append dialogues to the file. Those that it holds with the same answers are left out."""
        new = [dialogue for dialogue in dialogues if dialogue != self.known.get(_key(dialogue))]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(asdict(dialogue)) for dialogue in new)

    def remove(self) -> None:
        """Delete the file: the report holds all answers."""
        self.path.unlink(missing_ok=True)


def _key(dialogue: Dialogue) -> tuple[Any, ...]:
    """What makes a question the same."""
    return (
        dialogue.group, dialogue.cluster, dialogue.utterance, dialogue.task, dialogue.wording, dialogue.prompt,
        dialogue.prompt_first, dialogue.turn, *dialogue.history,
    )  # fmt: skip


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON document or of JSON lines, up to the first one that a kill cut off; empty without the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        return [json.loads(text)]
    return list(_whole(text.splitlines()))


def _whole(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
