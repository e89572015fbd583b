"""An exported speech LLM as a model of transformers, with its `generate`: sampling, beams, streamers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from mtbi.hf import frozen
from mtbi.hf.configuration import MtbiConfig
from mtbi.llm.last_layer import decoder_of
from mtbi.model import by_length
from mtbi.model.adapter import build_adapter
from mtbi.model.encoders.build import empty_encoder, restore_filters
from mtbi.model.encoders.protocol import taps_of
from mtbi.model.frame_classes import SilenceFilter, classes_of
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
        """Use the modules of `trained`, or without it build empty ones, whose weights are loaded later."""
        super().__init__(config)
        self.encoder: Any
        self.adapter: nn.Module
        self.llm: Any
        if trained is None and not config.complete:
            raise ValueError("this configuration is one of trained weights only: load the export with from_pretrained")
        if trained is not None:
            self.encoder, self.adapter, self.llm = trained.encoder, trained.adapter, trained.llm
        else:
            self.encoder = empty_encoder(config.encoder_architecture)
            self.llm = AutoModelForCausalLM.from_config(config.text_config)
            width = self.llm.get_input_embeddings().embedding_dim
            taps = taps_of(self.encoder)
            self.adapter = build_adapter(config.model.adapter, self.encoder.width, width, config.embedding_rms, taps)
        self._filter: SilenceFilter | None = None
        self._no_split_modules = self.llm._no_split_modules
        self._tied_weights_keys: Any = None
        tied = getattr(self.llm, "all_tied_weights_keys", None)  # of transformers 5
        if tied is None:
            self._tied_weights_keys = [f"llm.{key}" for key in self.llm._tied_weights_keys or []]
        else:
            self.all_tied_weights_keys = {f"llm.{key}": f"llm.{source}" for key, source in tied.items()}
        self._keys_to_ignore_on_save: Any  #: names of weights that transformers does not save
        # Frozen weights and their versions. A change in place raises the version. Changed weights are saved.
        self._frozen = {name: (id(value), value._version) for name, value in self.named_parameters() if not value.requires_grad}
        if trained is None:
            self.post_init()
        elif not config.complete:
            self._keys_to_ignore_on_save = self.frozen_keys()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers 4 and 5 name more arguments, which are passed on
        cls, path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load an export with the usual arguments of transformers. `dtype` is by default the exported one.

        For an export of the layout `trained`, the frozen weights are loaded from the original models (see `frozen.load`).
        """
        former_dtype = kwargs.pop("torch_dtype", None)  # the name in earlier versions of transformers
        kwargs["dtype"] = kwargs.get("dtype") or former_dtype or "auto"
        if not isinstance(config, MtbiConfig):
            kept = {name: kwargs[name] for name in (*frozen.HUB, "quantization_config", "dtype") if name in kwargs}
            others = {name: value for name, value in kwargs.items() if name not in ("quantization_config", "dtype")}
            config, unused = MtbiConfig.from_pretrained(config or path, return_unused_kwargs=True, **others)
            kwargs = {**unused, **kept}
        if config.complete:
            loaded = super().from_pretrained(path, *args, config=config, **kwargs)
            restore_filters((loaded[0] if isinstance(loaded, tuple) else loaded).encoder)
            return loaded
        if args:
            raise TypeError(f"from_pretrained takes one argument without a name, the path; {len(args)} more were given")
        return frozen.load(cls, path, config, kwargs)

    def frozen_keys(self) -> list[str]:
        """Names of the frozen weights, which an export of the layout `trained` does not hold."""
        kept = {
            name
            for name, value in self.named_parameters()
            if value.requires_grad or self._frozen.get(name) != (id(value), value._version)
        }
        return [name for name in self.state_dict() if name not in kept]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model with the usual arguments of transformers, in one file or in several.

        For the layout `trained`, a weight is saved if it trains, if it was trained before, or if it changed since it was
        loaded. Raises ValueError for another format than safetensors.
        """
        if kwargs.get("safe_serialization", True) is False:
            raise ValueError("safe_serialization=False: the weights are saved as safetensors only")
        if not self.config.complete:
            self._keys_to_ignore_on_save = self.frozen_keys()
        before = frozen.modified_ns(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)
        after = frozen.modified_ns(save_directory)
        stale = [name for name in after if after[name] == before.get(name)]
        if len(stale) < len(after):  # the single file is new and the index of several is old, or the reverse
            for name in stale:
                Path(save_directory, name).unlink()

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's input embeddings."""
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's input embeddings."""
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's output layer."""
        return self.llm.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        """The LLM without its output layer."""
        return decoder_of(self.llm)

    def encode_speech(self, input_values: Tensor, input_lengths: Tensor) -> Tensor:
        """Waveforms `(clips, samples)` at 16 kHz, lengths in samples: adapter frames `(frames of all clips, hidden)`."""
        features, lengths = by_length.encode(self.encoder, input_values, input_lengths.clamp(min=1))
        frames, counts = self.adapter(features.to(next(self.adapter.parameters()).dtype), lengths)
        return torch.cat([clip[:count] for clip, count in zip(frames, counts.tolist(), strict=True)])

    def heard(self, is_audio: Tensor, frames: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The attention mask `(batch, tokens)` without silent frames (`drop_silence`).

        `is_audio` `(batch, tokens)` are the places of `frames` (frames, hidden).
        """
        if self._filter is None or self._filter.device != frames.device:
            classes = classes_of(self.llm, self.config.silence_ids, self.config.silence_classes)
            self._filter = SilenceFilter(classes, self.config.model.adapter.drop_silence)
        mask = torch.ones_like(is_audio, dtype=torch.long) if attention_mask is None else attention_mask
        return mask.masked_scatter(is_audio, mask[is_audio] * ~self._filter.silent(frames))

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`. Silent frames are masked before it, since every later token must not read them."""
        ids = kwargs.get("input_ids", inputs)
        if self.config.model.adapter.drop_silence and ids is not None and kwargs.get("input_values") is not None:
            frames = self.encode_speech(kwargs["input_values"], kwargs["input_lengths"])
            is_audio = ids == self.config.audio_token_id
            check_frames(is_audio, frames)
            kwargs["attention_mask"] = self.heard(is_audio, frames, kwargs.get("attention_mask"))
        return super().generate(inputs, *args, **kwargs)

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
        """The LLM's output.

        `input_ids (batch, tokens)` holds `config.audio_token_id` once for each adapter frame of the clips, in order.
        `input_values (clips, samples)` are the clips at 16 kHz, `input_lengths (clips,)` their lengths in samples. `generate`
        counts `position_ids (batch, tokens)` from the first token of each prompt, so padding on the left changes nothing.
        Raises ValueError if the number of audio tokens is not the number of adapter frames.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids or inputs_embeds is needed")
            is_audio = input_ids == self.config.audio_token_id
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_audio, 0))
            if input_values is not None and input_lengths is not None:
                frames = self.encode_speech(input_values, input_lengths)
                check_frames(is_audio, frames)
                if self.config.model.adapter.drop_silence:
                    attention_mask = self.heard(is_audio, frames, attention_mask)
                    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0) if position_ids is None else position_ids
                inputs_embeds = inputs_embeds.masked_scatter(is_audio[..., None], frames.to(inputs_embeds))
            elif is_audio.shape[1] > 1 and (audio_tokens := int(is_audio.sum())):  # one token: generated
                raise ValueError(f"{audio_tokens} audio tokens without input_values and input_lengths: use the processor")
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        return self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pass the speech on for the first new token only: later steps read it from the cache."""
        speech = {name: kwargs.pop(name, None) for name in ("input_values", "input_lengths")}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        position, first = kwargs.get("cache_position"), kwargs.get("is_first_iteration")  # of transformers 4 and 5
        begins = position[0] == 0 if position is not None else bool(first)
        return {**inputs, **speech} if begins else inputs

    def _expand_inputs_for_generation(  # type: ignore[override, misc]  # a method here, since it needs the config
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        clips = kwargs.get("input_values")
        if expand_size > 1 and input_ids is not None and clips is not None:
            has_audio = (input_ids == self.config.audio_token_id).any(1)
            if len(input_ids) != len(clips) or not has_audio.all():
                raise ValueError("several answers to a prompt need exactly one recording in each prompt")
        return super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )


def check_frames(is_audio: Tensor, frames: Tensor) -> None:
    """Raises ValueError if the number of audio tokens is not the number of adapter frames."""
    if len(frames) != (audio_tokens := int(is_audio.sum())):
        raise ValueError(f"{audio_tokens} audio tokens for {len(frames)} frames of speech: use the processor")
