from __future__ import annotations

import random

import pytest

from mtbi import metrics
from mtbi.answers import task_library
from mtbi.demo import world
from mtbi.demo.text_llm import read_wordings

ANSWERS_ABOUT_SEVEN_TWO_NINE = {
    "repeat": "seven two nine",
    "reverse": "nine two seven",
    "count": "three",
    "first": "seven",
    "last": "nine",
    "maximum": "nine",
    "minimum": "two",
    "sort": "two seven nine",
    "sort_down": "nine seven two",
    "numerals": "7 2 9",
    "french": "sept deux neuf",
    "add_one": "eight three zero",
    "subtract_one": "six one eight",
    "drop_first": "two nine",
    "drop_last": "seven two",
    "parity": "odd",
    "has_seven": "yes",
    "swap_ends": "nine two seven",
    "second": "two",
    "twice": "seven seven two two nine nine",
}


@pytest.mark.parametrize(("task", "answer"), ANSWERS_ABOUT_SEVEN_TWO_NINE.items())
def test_gold_answers(task: str, answer: str) -> None:
    assert world.gold_answer(task, "um seven two uh nine") == answer


def test_a_constraint_changes_the_form_of_the_answer_only() -> None:
    assert world.gold_answer("reverse/french", "seven two um nine") == "neuf deux sept"
    assert world.gold_answer("count/numerals", "seven two nine") == "3"
    tasks = task_library.load(["digits"])
    rng = random.Random(0)
    for name in (*world.GOLD, *world.FORMATS):
        answers = [world.answer_about(name, world.random_digits(rng)) for _ in range(20)]
        assert all(metrics.follows(answer, tasks[name].form) for answer in answers), name


def test_every_task_has_gold_and_is_trained_or_unseen() -> None:
    wordings = read_wordings()
    assert set(wordings) == set(world.GOLD) | set(world.FORMATS)
    assert set(world.GOLD) == set(world.TRAINED_TASKS) | set(world.UNSEEN_TASKS)
    assert not set(world.TRAINED_TASKS) & set(world.UNSEEN_TASKS)
    assert all(len(set(texts)) == len(texts) >= 6 for texts in wordings.values())


def test_no_wording_belongs_to_two_tasks() -> None:
    texts = [text for texts in read_wordings().values() for text in texts]
    assert len(set(texts)) == len(texts)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ValueError, match="twelve"):
        world.parse("three twelve")


def test_fillers_leave_the_digits_as_they_were() -> None:
    rng = random.Random(0)
    digits = [4, 4, 0]
    texts = [world.with_fillers(digits, rng, 2.0) for _ in range(200)]
    assert all(world.parse(text) == digits for text in texts)
    fillers = sum(len(text.split()) - 3 for text in texts) / (200 * 4)
    assert fillers == pytest.approx(2.0, abs=0.3)
