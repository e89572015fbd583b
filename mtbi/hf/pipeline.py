"""`pipeline("audio-text-to-text", model=FOLDER)`."""
# mypy: disable-error-code="override, assignment, union-attr, operator"

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from mtbi.audio.waveforms import listed
from mtbi.hf import parts
from mtbi.llm.vocabulary import DECODING

TASK = "audio-text-to-text"
QUESTION = "a question is {'audio': RECORDING, 'text': PROMPT}, {'messages': MESSAGES} or MESSAGES"


class AudioTextToTextPipeline(Pipeline):
    """Answers to prompts about recordings: `ask({"audio": FILE, "text": "say it again"})` or `ask(MESSAGES)`.

    Returns `{"generated_text": ANSWER}`, or a list of these with `num_return_sequences`. MESSAGES are a conversation as the
    processor's chat template takes it. `audio` may be left out, and may be a list of recordings. A list of questions gives a
    list of answers, the same for every `batch_size`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if getattr(self, "assistant_model", None) is not None:
            raise ValueError("assistant_model: an assistant does not hear the recordings; leave it out")
        return {}, {**kwargs.pop("generate_kwargs", {}), **kwargs}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """`kwargs` go to `generate`. Raises ValueError for what is no question, and for an unusable recording."""
        if isinstance(inputs, (list, tuple)) and inputs:
            inputs = {"messages": inputs} if parts.is_message(inputs[0]) else list(inputs)
        return super().__call__(inputs, **kwargs)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess: dict, forward: dict, postprocess: dict
    ) -> PipelineIterator:
        """As the base class, but a batch is a list of conversations.

        The processor pads text on its left and audio on its right, where the base class would pad all on one side.
        """
        sized = isinstance(inputs, Sized)
        dataset = (PipelineDataset if sized else PipelineIterator)(inputs, self.preprocess, preprocess)
        workers = num_workers if sized else min(num_workers, 1)
        batches = DataLoader(dataset, num_workers=workers, batch_size=batch_size, collate_fn=list)
        answers = PipelineIterator(batches, self.forward, forward, loader_batch_size=batch_size)
        return PipelineIterator(answers, self.postprocess, postprocess)

    def preprocess(self, inputs: Any) -> list[dict[str, Any]]:
        """A question as a conversation whose recordings are waveforms."""
        if isinstance(inputs, (list, tuple)):
            inputs = {"messages": inputs}
        if not isinstance(inputs, Mapping) or set(inputs) - {"audio", "text"} not in (set(), {"messages"}):
            keys = (
                f"the keys {sorted(map(str, inputs))}" if isinstance(inputs, Mapping) else f"the type {type(inputs).__name__}"
            )
            raise ValueError(f"an input with {keys}: {QUESTION}")
        messages = inputs.get("messages")
        if messages is None:
            if not isinstance(inputs.get("text"), str):
                raise ValueError(f"an input without 'text': {QUESTION}")
            heard = [{"type": "audio", "audio": recording} for recording in listed(inputs.get("audio"))]
            messages = [{"role": "user", "content": [*heard, {"type": "text", "text": inputs["text"]}]}]
        elif set(inputs) != {"messages"}:
            raise ValueError(f"an input with 'messages' and more: {QUESTION}")
        [talk] = parts.conversations([messages])
        return [parts.read_message(message) for message in talk]

    def _forward(self, model_inputs: list, **kwargs: Any) -> Tensor:
        """Token ids `(conversations, answers, tokens)` of a batch of conversations, or of a single one."""
        talks = [model_inputs] if parts.is_message(model_inputs[0]) else model_inputs
        batch = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
        if generation := getattr(self, "generation_config", None):  # transformers 4 keeps what `pipeline` was given in it
            kwargs.setdefault("generation_config", generation)
        ids = self.model.generate(**batch.to(self.device), **kwargs)
        answers = ids[:, batch["input_ids"].shape[1] :]
        return answers.reshape(len(talks), -1, answers.shape[1])

    def postprocess(self, model_outputs: Tensor) -> dict[str, str] | list[dict[str, str]]:
        """To text."""
        texts = self.processor.batch_decode(model_outputs.flatten(0, 1), **DECODING)
        answers = [{"generated_text": text.strip()} for text in texts]
        return answers[0] if len(answers) == 1 else answers

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """The model and its processor, to be loaded as a pipeline again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
