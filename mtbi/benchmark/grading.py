"""What an answer counts: one rule for the report of a run and for that of a grid."""

from __future__ import annotations

from mtbi import metrics
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM, Dialogue

#: Scorers of tasks whose right answer is known word for word: such an answer is right or wrong.
RIGHT_OR_WRONG = ("exact", "wer", "cer")


def is_graded(dialogue: Dialogue) -> bool:
    """Whether an answer is right or wrong, as there is a right one."""
    return dialogue.gold is not None and dialogue.scorer in RIGHT_OR_WRONG


def reference(dialogue: Dialogue) -> str:
    """What an answer is held against: gold, else the transcript where it is repeated, else the text LLM's answer."""
    if dialogue.gold is not None:
        return dialogue.gold
    repeated = dialogue.scorer.startswith("wer") or dialogue.scorer == "cer"
    return dialogue.transcript if repeated else dialogue.answers[TEXT_LLM]


def right(dialogue: Dialogue, who: str) -> bool:
    """Whether an answer is the gold one."""
    return metrics.exact_match(dialogue.answers.get(who), dialogue.gold or "")


def worth(dialogue: Dialogue, who: str) -> float:
    """1 or 0 where there is a right answer; else the nearness to the reference by the task's scorer."""
    if is_graded(dialogue):
        return float(right(dialogue, who))
    return metrics.nearness(dialogue.scorer, dialogue.answers[who], reference(dialogue))


def scores(dialogues: list[Dialogue]) -> dict[str, float | None]:
    """Every score that the tasks' scorers call for, by its field of a cell; None where nothing is scored by it.

    Error rates and BLEU of scripts without spaces stand by themselves: they count characters.
    """
    by: dict[str, tuple[list[str], list[str]]] = {}
    for dialogue in dialogues:
        right = reference(dialogue)
        names = [metrics.fitting(dialogue.scorer, right)]
        if dialogue.scorer == "bleu":
            names = ["bleu_characters" if metrics.is_unspaced(right) else "bleu", "chrf"]
        for name in ["chrf" if name == "similarity" else name for name in names]:
            answers, references = by.setdefault(name, ([], []))
            answers.append(dialogue.answers[SPEECH])
            references.append(right)
    english = metrics.wer(*by["wer_english"], english=True) if "wer_english" in by else None
    return {
        "wer": metrics.wer(*by["wer"]) if "wer" in by else english,
        "wer_english": english,
        "cer": metrics.cer(*by["cer"]) if "cer" in by else None,
        "bleu": metrics.bleu(*by["bleu"]) if "bleu" in by else None,
        "bleu_characters": metrics.bleu(*by["bleu_characters"]) if "bleu_characters" in by else None,
        "chrf": metrics.chrf(*by["chrf"]) if "chrf" in by else None,
    }
