"""Another LLM as a judge of answers, through any server with OpenAI's chat completions API."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from mtbi.benchmark.dialogues import Dialogue
from mtbi.errors import UserError
from mtbi.metrics import SPEECH, TEXT_LLM

QUESTION = """Rate an answer to an instruction about something that was said.

Said: {transcript}
Instruction: {prompt}
Reference answer: {reference}
Answer to rate: {answer}

Does the answer do what the instruction asks, and is it as good as the reference?
Reply with one whole number from 1 (useless) to 5 (as good)."""


class Judge:
    """Asks `model` at `url` for a mark from 1 to 5 and scales it to a number from 0 to 1.

    The `openai` package reads the key from the environment variable OPENAI_API_KEY. The key is never printed.
    """

    def __init__(self, url: str, model: str, requests_at_once: int = 8) -> None:
        """Raises UserError if the `openai` package or the key is missing."""
        try:
            import openai
        except ImportError as error:
            raise UserError("--judge needs the openai package: pip install 'mtbi[judge]'") from error
        try:
            self.client = openai.OpenAI(base_url=url, max_retries=4, timeout=120)
        except openai.OpenAIError as error:
            raise UserError(f"--judge: {error}") from error
        self.model, self.requests_at_once, self.failure = model, requests_at_once, openai.OpenAIError

    def mark(self, dialogue: Dialogue) -> float | None:
        """The mark of the speech LLM's answer, from 0 to 1, or None if the reply holds no mark.

        Raises UserError if the server does not answer.
        """
        earlier = "".join(f"{prompt}\nEarlier answer: {answer}\nThen: " for prompt, answer in dialogue.history)
        question = QUESTION.format(
            transcript=dialogue.transcript,
            prompt=earlier + dialogue.prompt,
            reference=dialogue.gold or dialogue.answers[TEXT_LLM],
            answer=dialogue.answers[SPEECH],
        )
        try:
            reply = self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=8
            )
        except self.failure as error:
            raise UserError(f"--judge: {self.client.base_url} does not answer: {error}") from error
        digit = re.search(r"[1-5]", (reply.choices[0].message.content if reply.choices else "") or "")
        return (int(digit[0]) - 1) / 4 if digit else None

    def judge(self, dialogues: Iterable[Dialogue]) -> None:
        """Set `judged` of every dialogue."""
        listed = list(dialogues)
        with ThreadPoolExecutor(self.requests_at_once) as pool:
            marks = tqdm(pool.map(self.mark, listed), total=len(listed), desc="judge", unit="answer", disable=None)
            for dialogue, mark in zip(listed, marks, strict=True):
                dialogue.judged = mark
