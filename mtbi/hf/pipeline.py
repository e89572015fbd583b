"""`pipeline("audio-text-to-text", model=FOLDER)`."""
# mypy: disable-error-code="override, assignment, union-attr, operator"

from __future__ import annotations

from typing import Any

from transformers import Pipeline

TASK = "audio-text-to-text"


class AudioTextToTextPipeline(Pipeline):
    """Answers to prompts about recordings: `ask({"audio": FILE, "text": "say it again"})` or `ask(MESSAGES)`.

    Returns `{"generated_text": ANSWER}`. MESSAGES are a conversation as the processor's chat template takes it.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, kwargs, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """`kwargs` go to `generate`."""
        if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) and "role" in inputs[0]:
            inputs = {"messages": inputs}
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: dict[str, Any]) -> Any:
        """To tensors."""
        messages = inputs.get("messages")
        if messages is None:
            heard = [{"type": "audio", "audio": inputs["audio"]}] if inputs.get("audio") is not None else []
            messages = [{"role": "user", "content": [*heard, {"type": "text", "text": inputs["text"]}]}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)

    def _forward(self, model_inputs: Any, **kwargs: Any) -> Any:
        ids = self.model.generate(**model_inputs, **kwargs)
        return ids[:, model_inputs["input_ids"].shape[1] :]

    def postprocess(self, model_outputs: Any) -> dict[str, str]:
        """To text."""
        [answer] = self.processor.batch_decode(model_outputs, skip_special_tokens=True)
        return {"generated_text": answer.strip()}
