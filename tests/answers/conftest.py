from __future__ import annotations

import pytest
from digit_answers import CONFIG

from mtbi.answers.teacher import TransformersTeacher, build_teacher
from mtbi.recipe import ModelConfig


@pytest.fixture(scope="session")
def teacher() -> TransformersTeacher:
    """The miniature text LLM."""
    made = build_teacher(ModelConfig(), CONFIG)
    assert isinstance(made, TransformersTeacher)
    return made
