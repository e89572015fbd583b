"""An exported speech LLM as a model of transformers: `generate` with sampling, beams, streamers and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mtbi.demo.encoder import DemoEncoder, DemoEncoderConfig
from mtbi.demo.encoder import LogMel as DemoLogMel
from mtbi.hf import frozen
from mtbi.hf.configuration import MtbiConfig
from mtbi.model import by_length
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.build import FFT_SAMPLES, Convolutional, LogMel, Whisper, mel_filters
from mtbi.model.speech_llm import SpeechLLMModule


class MtbiForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Encoder, adapter and LLM: text from text and speech."""

    config_class = MtbiConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MtbiConfig, trained: SpeechLLMModule | None = None) -> None:
        """With the parts of `trained`, or with weights yet to be loaded."""
        super().__init__(config)
        self.encoder: Any
        self.adapter: nn.Module
        self.llm: Any
        if trained is None and not config.complete:
            raise ValueError("this configuration is one of trained weights only: load the export with from_pretrained")
        if trained is not None:
            self.encoder, self.adapter, self.llm = trained.encoder, trained.adapter, trained.llm
        else:
            self.encoder = empty_encoder(config)
            self.llm = AutoModelForCausalLM.from_config(config.text_config)
            width = self.llm.get_input_embeddings().embedding_dim
            self.adapter = build_adapter(config.model.adapter, self.encoder.width, width, config.embedding_rms)
        self._no_split_modules = self.llm._no_split_modules
        self._tied_weights_keys: Any = None
        tied = getattr(self.llm, "all_tied_weights_keys", None)  # of transformers 5
        if tied is None:
            self._tied_weights_keys = [f"llm.{key}" for key in self.llm._tied_weights_keys or []]
        else:
            self.all_tied_weights_keys = {f"llm.{key}": f"llm.{source}" for key, source in tied.items()}
        self._keys_to_ignore_on_save: Any  #: transformers leaves these out of what it saves
        # Frozen weights with their versions, which count changes in place: a changed one is saved with the trained ones.
        self._frozen = {name: (id(value), value._version) for name, value in self.named_parameters() if not value.requires_grad}
        if trained is None:
            self.post_init()
        elif not config.complete:
            self._keys_to_ignore_on_save = self.frozen_keys()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As for every model of transformers; `dtype` is by default the exported one.

        An export of trained weights only builds the frozen parts from their own homes first, on one device: see `frozen.load`.
        """
        asked = kwargs.pop("torch_dtype", None)
        kwargs["dtype"] = kwargs.get("dtype") or asked or "auto"
        if not isinstance(config, MtbiConfig):
            kept = {name: kwargs[name] for name in (*frozen.HUB, "quantization_config", "dtype") if name in kwargs}
            others = {name: value for name, value in kwargs.items() if name not in ("quantization_config", "dtype")}
            config, unused = MtbiConfig.from_pretrained(config or path, return_unused_kwargs=True, **others)
            kwargs = {**unused, **kept}
        if config.complete:
            loaded = super().from_pretrained(path, *args, config=config, **kwargs)
            restore_features(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded
        if args:
            raise TypeError(f"from_pretrained takes one argument without a name, the path; {len(args)} more were given")
        return frozen.load(cls, path, config, kwargs)

    def frozen_keys(self) -> list[str]:
        """Names of the frozen weights, which an export of trained weights leaves to their own homes."""
        kept = {
            name
            for name, value in self.named_parameters()
            if value.requires_grad or self._frozen.get(name) != (id(value), value._version)
        }
        return [name for name in self.state_dict() if name not in kept]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As for every model of transformers, in files of any size.

        Of an export of trained weights, those are saved that train, trained once, or were changed since the export was loaded.
        Raises ValueError for another format than safetensors.
        """
        if kwargs.get("safe_serialization", True) is False:
            raise ValueError("safe_serialization=False: the weights are saved as safetensors only")
        if not self.config.complete:
            self._keys_to_ignore_on_save = self.frozen_keys()
        before = frozen.written(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)
        after = frozen.written(save_directory)
        stale = [name for name in after if after[name] == before.get(name)]
        if len(stale) < len(after):  # one file is new, so the list of several is old, or the other way round
            for name in stale:
                Path(save_directory, name).unlink()

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """The LLM's."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's."""
        return self.llm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The LLM without its output layer."""
        return self.llm.get_decoder()

    def hear(self, input_values: Tensor, input_lengths: Tensor) -> Tensor:
        """Waveforms `(clips, samples)` at 16 kHz and lengths in samples to adapter frames `(frames of all clips, hidden)`."""
        features, lengths = by_length.encode(self.encoder, input_values, input_lengths.clamp(min=1))
        frames, counts = self.adapter(features.to(next(self.adapter.parameters()).dtype), lengths)
        return torch.cat([clip[:count] for clip, count in zip(frames, counts.tolist(), strict=True)])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_lengths: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the LLM returns. `input_ids (batch, tokens)` holds `config.audio_token_id` where adapter frames of the clips
        `input_values (clips, samples)`, in order, stand. Raises ValueError where their numbers differ.

        `generate` counts `position_ids (batch, tokens)` from each prompt's first token: padding on the left changes nothing.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds is needed")
            heard = input_ids == self.config.audio_token_id
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(heard, 0))
            if input_values is not None and input_lengths is not None:
                frames = self.hear(input_values, input_lengths)
                if len(frames) != int(heard.sum()):
                    raise ValueError(f"{int(heard.sum())} audio tokens for {len(frames)} frames of speech: use the processor")
                inputs_embeds = inputs_embeds.masked_scatter(heard[..., None], frames.to(inputs_embeds))
            elif heard.shape[1] > 1 and heard.any():  # a single token is one that was generated
                raise ValueError(f"{int(heard.sum())} audio tokens without input_values and input_lengths: use the processor")
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Speech is heard once, before the first new token."""
        sound = {name: kwargs.pop(name, None) for name in ("input_values", "input_lengths")}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        position, first = kwargs.get("cache_position"), kwargs.get("is_first_iteration")  # of transformers 4 and 5
        begins = position[0] == 0 if position is not None else bool(first)
        return {**inputs, **sound} if begins else inputs

    def _expand_inputs_for_generation(  # type: ignore[override]  # of the model, not of the class: it looks for audio tokens
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        sound = kwargs.get("input_values")
        if expand_size > 1 and input_ids is not None and sound is not None:
            heard = (input_ids == self.config.audio_token_id).any(1)
            if len(input_ids) != len(sound) or not heard.all():
                raise ValueError("several answers to a prompt need exactly one recording in each prompt")
        return super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )


def features_of(config: MtbiConfig) -> nn.Module | None:
    """What makes features of waveforms for an encoder: it has no weights, and its filters are float32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            if config.encoder_config.get("model_type") == "mtbi-demo-encoder":
                return DemoLogMel(config.encoder_config["mels"])
            if config.encoder_config.get("model_type") == "whisper":
                return LogMel(mel_filters(config.encoder_config["num_mel_bins"]))
            return None
    finally:
        torch.set_default_dtype(default)


def restore_features(model: Any) -> None:
    """Compute again what transformers 4 makes in the model's precision, and transformers 5 not at all: filters and windows."""
    fresh = features_of(model.config)
    for name, value in fresh.named_buffers() if fresh is not None else ():
        parent, _, leaf = name.rpartition(".")
        module = model.encoder.features.get_submodule(parent)
        setattr(module, leaf, value.to(getattr(module, leaf).device))


def empty_encoder(config: MtbiConfig) -> nn.Module:
    """The encoder that `config.encoder_config` describes, without pretrained weights."""
    settings = dict(config.encoder_config)
    kind = settings.pop("model_type", None)
    if kind == "mtbi-demo-encoder":
        return DemoEncoder(DemoEncoderConfig(**settings))
    sizes: Any = CONFIG_MAPPING[kind](**settings)
    if kind == "whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return Whisper(WhisperEncoder(sizes), torch.zeros(FFT_SAMPLES // 2 + 1, sizes.num_mel_bins))
    from transformers import AutoModel

    return Convolutional(AutoModel.from_config(sizes), config.normalise)
