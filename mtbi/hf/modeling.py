"""An exported speech LLM as a model of transformers: `generate` with sampling, beams, streamers and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import cached_file

from mtbi.demo.encoder import DemoEncoder, DemoEncoderConfig
from mtbi.hf.configuration import MtbiConfig
from mtbi.model import buckets
from mtbi.model.adapter import build_adapter
from mtbi.model.encoder import Convolutional, Whisper, mel_filters
from mtbi.model.speech_llm import SpeechLLM, build_speech_llm
from mtbi.recipe import LossConfig, in_use

WEIGHTS = "model.safetensors"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MtbiForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Encoder, adapter and LLM: text from text and speech."""

    config_class = MtbiConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MtbiConfig, trained: SpeechLLM | None = None) -> None:
        """With the parts of `trained`, or with weights yet to be loaded."""
        super().__init__(config)
        self.encoder: Any
        self.adapter: nn.Module
        self.llm: Any
        if trained is not None:
            self.encoder, self.adapter, self.llm = trained.encoder, trained.adapter, trained.llm
        else:
            self.encoder = empty_encoder(config)
            self.llm = AutoModelForCausalLM.from_config(config.text_config)
            width = self.llm.get_input_embeddings().embedding_dim
            self.adapter = build_adapter(config.model.adapter, self.encoder.width, width, config.embedding_rms)
        self._no_split_modules = self.llm._no_split_modules
        self._tied_weights_keys: Any = [f"llm.{key}" for key in self.llm._tied_weights_keys or []]
        if trained is None:
            self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: MtbiConfig | None = None, **kwargs: Any) -> Any:
        """As for every model of transformers; `dtype` is by default the exported one.

        An export of trained weights only builds the frozen parts from their own homes first, on one device (`device_map` may
        name it). Raises UserError where these cannot be found, ValueError where the weights do not fit.
        """
        hub = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        config = config or MtbiConfig.from_pretrained(path, **hub)
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", None) or "auto")
        if config.complete:
            return super().from_pretrained(path, *args, config=config, **kwargs)
        dtype, place = kwargs["dtype"], one_device(kwargs.get("device_map"))
        parts = replace(in_use(config.model), trust_remote_code=bool(kwargs.get("trust_remote_code")))
        if dtype == "auto":
            dtype = config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        built = build_speech_llm(parts, LossConfig(), dtype, place)
        missing, unexpected = built.load_state_dict(load_file(str(cached_file(path, WEIGHTS, **hub))), strict=False)
        lacking = sorted(set(missing) & set(built.trainable_parameters()))
        if lacking or unexpected:
            raise ValueError(f"{path}: {WEIGHTS} does not fit its config.json; missing {lacking}, unexpected {unexpected}")
        usual = "sdpa" if built.llm._supports_sdpa else "eager"
        built.llm.set_attn_implementation(kwargs.get("attn_implementation") or usual)
        model = cls(config, built)
        model.generation_config = GenerationConfig.from_pretrained(path, **hub)
        return model.eval()

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
        features, lengths = buckets.encode(self.encoder, input_values, input_lengths.clamp(min=1))
        frames, counts = self.adapter(features.to(next(self.adapter.parameters()).dtype), lengths)
        return torch.cat([clip[:count] for clip, count in zip(frames, counts.tolist(), strict=True)])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        input_lengths: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the LLM returns. `input_ids (batch, tokens)` holds `config.audio_token_id` where adapter frames of the clips
        `input_values (clips, samples)`, in order, stand. Raises ValueError where their numbers differ."""
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
        return self.llm(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Speech is heard once, before the first new token."""
        sound = {name: kwargs.pop(name, None) for name in ("input_values", "input_lengths")}
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        position = kwargs.get("cache_position")
        return {**inputs, **sound} if position is None or position[0] == 0 else inputs

    @staticmethod
    def _expand_inputs_for_generation(
        expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        sound = kwargs.get("input_values")
        if expand_size > 1 and input_ids is not None and sound is not None and len(input_ids) != len(sound):
            raise ValueError("several answers to a prompt need exactly one recording in each prompt")
        return GenerationMixin._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)


def empty_encoder(config: MtbiConfig) -> nn.Module:
    """The encoder that `config.encoder_config` describes, without pretrained weights."""
    settings = dict(config.encoder_config)
    kind = settings.pop("model_type", None)
    if kind == "mtbi-demo-encoder":
        return DemoEncoder(DemoEncoderConfig(**settings))
    sizes: Any = CONFIG_MAPPING[kind](**settings)
    if kind == "whisper":
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return Whisper(WhisperEncoder(sizes), mel_filters(sizes.num_mel_bins))
    from transformers import AutoModel

    return Convolutional(AutoModel.from_config(sizes), config.normalise)


def one_device(device_map: Any) -> torch.device:
    """The device that a `device_map` means when everything lies on one. Raises ValueError for other maps."""
    if isinstance(device_map, dict) and len(device_map) == 1:
        [device_map] = device_map.values()
    if device_map is None or device_map == "auto":
        return torch.device("cuda" if device_map and torch.cuda.is_available() else "cpu")
    if isinstance(device_map, dict):
        raise ValueError("an export of trained weights only loads on one device; for more, `mtbi export --layout merged`")
    return torch.device(device_map)
