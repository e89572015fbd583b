"""The pipeline of transformers for exported models: `pipeline("audio-text-to-text", model=FOLDER)`."""
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
    """Answers prompts about recordings: `ask({"audio": FILE, "text": "say it again"})` or `ask(MESSAGES)`.

    Returns `{"generated_text": ANSWER}`, or a list of these with `num_return_sequences`. MESSAGES are a conversation in the
    form of the processor's chat template. `audio` is optional and may be a list of recordings. For a list of questions the
    result is a list of answers, which does not depend on `batch_size`.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if getattr(self, "assistant_model", None) is not None:
            raise ValueError("assistant_model: an assistant does not get the recordings; leave it out")
        return {}, {**kwargs.pop("generate_kwargs", {}), **kwargs}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """`kwargs` go to `generate`. Raises ValueError for an input of another form, and for an unusable recording."""
        if isinstance(inputs, (list, tuple)) and inputs:
            inputs = {"messages": inputs} if parts.is_message(inputs[0]) else list(inputs)
        return super().__call__(inputs, **kwargs)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess: dict, forward: dict, postprocess: dict
    ) -> PipelineIterator:
        """The iterator of the base class, with lists of conversations as batches.

        The processor pads text on the left and audio on the right. The base class would pad both on the same side.
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
            speech = [{"type": "audio", "audio": recording} for recording in listed(inputs.get("audio"))]
            messages = [{"role": "user", "content": [*speech, {"type": "text", "text": inputs["text"]}]}]
        elif set(inputs) != {"messages"}:
            raise ValueError(f"an input with 'messages' and more: {QUESTION}")
        [talk] = parts.conversations([messages])
        return [parts.read_message(message) for message in talk]

    def _forward(self, model_inputs: list, **kwargs: Any) -> Tensor:
        """The answers of a batch of conversations, or of a single one, as token ids `(conversations, answers, tokens)`."""
        talks = [model_inputs] if parts.is_message(model_inputs[0]) else model_inputs
        batch: Any = self.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
        if prepare := getattr(self, "_prepare_generate_kwargs", None):  # transformers 5 adds the arguments of `pipeline` here
            kwargs = prepare(kwargs)
        elif generation := getattr(self, "generation_config", None):  # transformers 4 keeps the arguments of `pipeline` in it
            kwargs.setdefault("generation_config", generation)
        ids = self.model.generate(**batch.to(self.device), **kwargs)
        answers = ids[:, batch["input_ids"].shape[1] :]
        return answers.reshape(len(talks), -1, answers.shape[1])

    def postprocess(self, model_outputs: Tensor) -> dict[str, str] | list[dict[str, str]]:
        """The answers as text."""
        texts = self.processor.batch_decode(model_outputs.flatten(0, 1), **DECODING)
        answers = [{"generated_text": text.strip()} for text in texts]
        return answers[0] if len(answers) == 1 else answers

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save the model and its processor, so that `pipeline` can load the folder."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
