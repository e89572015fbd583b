"""What an exported model is made of."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mtbi import recipe as recipes
from mtbi.recipe import ModelConfig


class MtbiConfig(PretrainedConfig):
    """Encoder, adapter and LLM.

    `parts` are the fields of `mtbi.recipe.ModelConfig`. An export that is not `complete` holds trained weights only, and takes
    the frozen ones from where `parts` says: `llm` and `encoder.path`.
    """

    model_type = "mtbi"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}  # type: ignore[misc]

    def __init__(
        self,
        parts: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        encoder_config: dict[str, Any] | None = None,
        complete: bool = False,
        audio_token_id: int = 0,
        embedding_rms: float = 1.0,
        normalise: bool = True,
        prompt_first: bool = False,
        **kwargs: Any,
    ) -> None:
        """`encoder_config` is the encoder's own configuration, `audio_token_id` stands for an adapter frame among token ids.

        `embedding_rms` is the root mean square that a fresh adapter's output has, `normalise` is wav2vec 2.0's `do_normalize`
        in exports of before it stood in `encoder_config`.
        `prompt_first` says that the prompt stands before the speech, as the chat template lays it out.
        """
        self.parts = parts or asdict(ModelConfig())
        if isinstance(text_config, dict):
            text_config = CONFIG_MAPPING[text_config["model_type"]](**text_config)
        self.text_config = text_config or CONFIG_MAPPING["llama"]()
        self.encoder_config = encoder_config or {}
        self.complete = complete
        self.audio_token_id = audio_token_id
        self.embedding_rms = embedding_rms
        self.normalise = normalise
        self.prompt_first = prompt_first
        super().__init__(**kwargs)

    @property
    def encoder_architecture(self) -> dict[str, Any]:
        """`encoder_config` as `mtbi.model.encoders.build.empty_encoder` takes it, also that of earlier exports."""
        return self.encoder_config | ({} if self.normalise else {"normalise": False})

    @property
    def model(self) -> ModelConfig:
        """`parts` as the recipe has them. Raises UserError for unknown fields."""
        return recipes.build(ModelConfig, self.parts, "model")
