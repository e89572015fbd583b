"""The configuration of an exported model (config.json)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mtbi import recipe as recipes
from mtbi.recipe import ModelConfig


class MtbiConfig(PretrainedConfig):
    """Encoder, adapter and LLM.

    `parts` are the fields of `mtbi.recipe.ModelConfig`. An export that is not `complete` holds the trained weights only. The
    frozen weights then come from `llm` and `encoder.path` of `parts`.
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
        silence_ids: list[int] | None = None,
        silence_classes: int = 0,
        **kwargs: Any,
    ) -> None:
        """`encoder_config` is the encoder's own configuration. `audio_token_id` is the token id in place of an adapter frame.

        `embedding_rms` is the root mean square of a fresh adapter's output. `normalise` is `do_normalize` of
        wav2vec 2.0 in older exports.
        `prompt_first` is true if the chat template puts the prompt before the speech. With `drop_silence` of the adapter,
        `silence_ids` are the token ids of silence and `silence_classes` the number of tokens that it is told apart from (0 =
        all).
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
        self.silence_ids = silence_ids or []
        self.silence_classes = silence_classes
        super().__init__(**kwargs)

    @property
    def encoder_architecture(self) -> dict[str, Any]:
        """`encoder_config` as `mtbi.model.encoders.build.empty_encoder` takes it, also that of earlier exports."""
        return self.encoder_config | ({} if self.normalise else {"normalise": False})

    @property
    def model(self) -> ModelConfig:
        """`parts` as a section of the recipe. Raises UserError for unknown fields."""
        return recipes.build(ModelConfig, self.parts, "model")
