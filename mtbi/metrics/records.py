"""The metrics of a report, one record each.

`METRICS` lists the records in the order of a table's columns. To add a metric, add a record there. A record with a `scorer`
lets the tasks of a library be scored by it. `mtbi.metrics.kinds` explains a record.
"""

from __future__ import annotations

from functools import partial

from mtbi.metrics.kinds import (
    ADAPTED,
    CASCADE,
    NO_AUDIO,
    SCORERS,
    SHUFFLED,
    SILENCE,
    SPEECH,
    TEXT_LLM,
    Metric,
    Scorer,
    accuracy_of,
    control,
    has_run_away,
    instructions_of,
    is_correct,
    is_graded,
    mean_wording,
    of_texts,
    of_wordings,
    pair_texts,
    rate,
    ratio,
    share_of,
    spaced,
    unspaced,
    wer_by_scorer,
    wer_of,
    worst_wording,
)
from mtbi.metrics.repetition import is_repetitive
from mtbi.metrics.texts import (
    bleu,
    cer,
    character_similarity,
    chrf,
    exact_match,
    follows,
    list_f1,
    rouge_l,
    wer,
    word_similarity,
)  # fmt: skip

METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy", "accuracy", "answers that equal the gold answer",
        is_graded, lambda d: (is_correct(d, SPEECH), 1), ratio, "shown",
        scorer=Scorer("exact", exact_match, right_or_wrong=True),
    ),
    accuracy_of(TEXT_LLM, "text_llm", "accuracy of the text LLM that reads the transcript"),
    Metric(
        "kept", "kept", "accuracy as a share of the text LLM's",
        is_graded, lambda d: (is_correct(d, SPEECH), is_correct(d, TEXT_LLM)), ratio, "shown",
    ),
    accuracy_of(CASCADE, "cascade", "accuracy of the text LLM that reads a recogniser's transcript"),
    accuracy_of(ADAPTED, "adapted_text", "accuracy of the trained LLM that reads the transcript, one in eight"),
    share_of(SPEECH, "share", "share", "scores as a share of the text LLM's own", "kept", shown=True),
    share_of(CASCADE, "cascade_share", "cascade share", "the same for the cascade", "cascade", shown=True),
    share_of(
        ADAPTED, "adapted_text_share", "adapted share", "the same for the trained LLM that reads the text", "adapted_text",
    )._replace(higher_is_better=True),
    Metric(
        "agreement", "agreement", "answers that equal the text LLM's",
        lambda d: True, lambda d: (exact_match(d.answers[SPEECH], d.answers[TEXT_LLM]), 1), ratio, "shown",
    ),
    Metric(
        "follows", "form", "answers, right or wrong, in the form that was asked for",
        lambda d: bool(d.form), lambda d: (follows(d.answers[SPEECH], d.form), 1), ratio, "saved",
    ),
    of_wordings("mean_wording", "", "mean over wordings of the accuracy of each", mean_wording),
    of_wordings("worst_wording", "worst wording", "accuracy of the worst wording (of those asked 10 times)", worst_wording),
    control(SILENCE, "silence", "accuracy with silence in the place of the speech"),
    control(NO_AUDIO, "no_audio", "accuracy without any audio"),
    control(SHUFFLED, "shuffled", "accuracy with another utterance in the place of the speech"),
    share_of(SILENCE, "silence_share", "silence share", "scores with silence, as a share of the text LLM's own", "silence"),
    share_of(NO_AUDIO, "no_audio_share", "no audio share", "the same without any audio", "no_audio"),
    share_of(SHUFFLED, "shuffled_share", "shuffled share", "the same with another utterance", "shuffled"),
    rate(
        "runaway", "runaway", "answers that were cut off at their longest length, or that repeat themselves",
        lambda d: has_run_away(d, SPEECH),
    ),
    rate("cut_off", "", "answers that were cut off at their longest length", lambda d: SPEECH in d.cut_off),
    rate("repetitive", "", "answers that say a phrase three times in a row", lambda d: is_repetitive(d.answers[SPEECH])),
    rate(
        "text_llm_runaway", "text LLM runaway", "answers of the text LLM that ran away",
        lambda d: has_run_away(d, TEXT_LLM), TEXT_LLM,
    ),
    instructions_of("instructions", "instructions", "items of which the answer follows every checked instruction", SPEECH),
    instructions_of("text_llm_instructions", "text LLM instructions", "the same for the text LLM", TEXT_LLM),
    of_texts(
        "wer", "WER", "word error rate of tasks scored by `wer`, and where there are none of those scored by `wer_english`",
        wer_by_scorer, Scorer("wer", word_similarity, right_or_wrong=True, repeats=True), spaced("wer", "wer_english"),
        higher_is_better=False,
    ),
    of_texts(
        "wer_english", "WER (English)", "word error rate after Whisper's English normaliser",
        lambda pairs: wer(*pair_texts(pairs), english=True),
        Scorer("wer_english", partial(word_similarity, english=True), repeats=True), spaced("wer_english"),
        higher_is_better=False,
    ),
    wer_of(
        "wer_capped", "WER capped", "word error rate with at most 100% an utterance", lambda d: d.answers[SPEECH], capped=True
    ),
    wer_of("text_llm_wer", "WER text LLM", "word error rate of the text LLM that reads the transcript",
           lambda d: d.answers.get(TEXT_LLM)),
    wer_of("recogniser_wer", "WER recogniser", "word error rate of the recogniser's transcript itself", lambda d: d.heard),
    wer_of("cascade_wer", "WER cascade", "word error rate of the text LLM that reads the recogniser's transcript",
           lambda d: d.answers.get(CASCADE)),
    of_texts(
        "cer", "CER", "character error rate, also of tasks scored by WER whose reference has no spaces between words",
        lambda pairs: cer(*pair_texts(pairs)), Scorer("cer", character_similarity, right_or_wrong=True, repeats=True),
        lambda scorer, text: scorer == "cer" or unspaced("wer", "wer_english")(scorer, text), higher_is_better=False,
    ),
    of_texts(
        "bleu", "BLEU", "BLEU of translations",
        lambda pairs: bleu(*pair_texts(pairs)), Scorer("bleu", lambda answer, text: chrf([answer], [text])),
        spaced("bleu"),
    ),
    of_texts(
        "bleu_characters", "BLEU (characters)", "BLEU of translations into scripts without spaces, cut into characters",
        lambda pairs: bleu(*pair_texts(pairs)), applies=unspaced("bleu"),
    ),
    of_texts(
        "chrf", "chrF", "chrF of translations and free texts",
        lambda pairs: chrf(*pair_texts(pairs)), Scorer("similarity", lambda answer, text: chrf([answer], [text])),
        lambda scorer, _: scorer in ("bleu", "similarity"),
    ),
    of_texts(
        "rouge_l", "ROUGE-L", "ROUGE-L of free texts: F1 of the longest common subsequence of words; mean over answers",
        lambda pairs: sum(rouge_l(pair.answer, pair.reference) for pair in pairs) / len(pairs),
        applies=lambda scorer, _: scorer == "similarity",
    ),
    of_texts(
        "list_f1", "list F1", "F1 of the items that an answer lists, in any order; mean over answers",
        lambda pairs: sum(list_f1(pair.answer, pair.reference) for pair in pairs) / len(pairs), Scorer("list_f1", list_f1),
    ),
    Metric(
        "judged", "judged", "mean mark of an LLM as a judge",
        lambda d: d.judged is not None, lambda d: (d.judged, 1), ratio,
    ),
    Metric(
        "token_agreement", "", "tokens of the text LLM's answers that are the speech LLM's likeliest",
        lambda d: d.tokens > 0, lambda d: (d.token_hits, d.tokens), ratio,
    ),
    Metric(
        "divergence", "", "Kullback-Leibler divergence from the text LLM's probabilities",
        lambda d: d.tokens > 0, lambda d: (d.token_divergence, d.tokens), ratio, unit="nats/token", higher_is_better=False,
    ),
)  # fmt: skip
SCORERS.update({metric.scorer.name: metric.scorer for metric in METRICS if metric.scorer})
