"""`mtbi export`: write a trained run as a folder that Hugging Face transformers or vLLM loads (see `mtbi.hf`)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import GenerationConfig

from mtbi import recipe as recipes
from mtbi import versions
from mtbi.answers.teacher import all_end_ids
from mtbi.errors import UserError
from mtbi.hf import ultravox
from mtbi.hf.configuration import MtbiConfig
from mtbi.hf.modeling import MtbiForConditionalGeneration
from mtbi.hf.pipeline import TASK
from mtbi.hf.processing import AUDIO_TOKEN, MtbiFeatureExtractor, MtbiProcessor
from mtbi.llm.chat_format import TEMPLATE_VARIABLES, TODAY, fixed_clock, load_llm_tokenizer
from mtbi.llm.control_tokens import APART
from mtbi.llm.load import embedding_rms
from mtbi.llm.trained_layers import NONE
from mtbi.model.encoders.build import describe_encoder, encoder_facts
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import LoraConfig, Recipe
from mtbi.use.layouts import LAYOUTS
from mtbi.use.open_run import TrainedRun

PRIVATE = ("run_dir", "data")  # sections of the recipe with paths of the machine that trained
MAX_NEW_TOKENS = 256

#: Jinja before the LLM's own template. It turns the parts of a message into text with one token for each recording, in the
#: order of `mtbi.use.turn`. `APART` separates the texts that training tokenises by themselves.
FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set made = namespace(first=-1, last=-1, before='', after='', said='') -%}
{%- for part in message['content'] if part['type'] == 'audio' or part['text'] | trim -%}
{%- if part['type'] == 'audio' -%}
{%- if made.first < 0 -%}{%- set made.first = loop.index0 -%}{%- endif -%}
{%- set made.last = loop.index0 -%}{%- set made.after = '' -%}
{%- elif made.first < 0 -%}{%- set made.before = made.before + ' ' + part['text'] -%}
{%- else -%}{%- set made.after = made.after + ' ' + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'audio' or part['text'] | trim -%}
{%- if part['type'] == 'audio' -%}{%- set made.said = made.said + AUDIO -%}
{%- elif loop.index0 < made.last and (made.after or loop.index0 > made.first) -%}
{%- set made.said = made.said + (APART + SPACE if made.said else '') + part['text'].split() | join(APART + SPACE) -%}
{%- endif -%}
{%- endfor -%}
{%- set prompt = (made.after or made.before) | trim -%}
{%- if not (made.said and prompt) -%}{%- set text = made.said + prompt + APART -%}
{%- elif PROMPT_FIRST -%}{%- set text = prompt + '\\n' + APART + made.said + APART -%}
{%- else -%}{%- set text = made.said + APART + '\\n' + prompt -%}
{%- endif -%}
{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': APART + text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': PROMPT}] + messages -%}{%- endif -%}
"""


def export(run: TrainedRun, out: Path, layout: str = "trained") -> None:
    """Write a run to the new folder `out`: weights, configurations, processor, chat template, recipe and model card.

    `layout` is a name of `mtbi.use.layouts.LAYOUTS`. All but `trained` merge low-rank updates into the run's model in place.
    Raises UserError if `out` is not empty, or if the layout does not support the run's encoder or adapter.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty; export to a new folder")
    if run.recipe.model.new_tokens:
        raise UserError(
            "model.new_tokens: an LLM with new tokens cannot be exported yet; use the run itself (mtbi chat, mtbi serve)"
        )
    if layout == "ultravox":
        ultravox.parts(run.model)
    folder = out.with_name(f".{out.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    processor = make_processor(run, apart=layout != "ultravox")
    if layout != "trained":
        merge_lora(run.model)
    if layout == "ultravox":
        ultravox.write(run.model, processor.tokenizer, folder)  # type: ignore[attr-defined]
    else:
        config = make_config(run, processor.audio_token_id, layout == "merged")
        MtbiForConditionalGeneration(config, run.model).save_pretrained(folder)
        processor.save_pretrained(folder)
    end = run.chat.end_id
    ends = all_end_ids(run.model.llm.generation_config, end)
    GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, eos_token_id=ends, pad_token_id=end).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(shown_recipe(run.recipe), encoding="utf-8")
    (folder / "README.md").write_text(card(run, layout), encoding="utf-8")
    if out.exists():
        out.rmdir()
    folder.rename(out)


def make_processor(run: TrainedRun, apart: bool = True) -> MtbiProcessor:
    """Tokenizer, chat template and lengths of a run."""
    model = run.recipe.model
    tokenizer = load_llm_tokenizer(model.llm, model.trust_remote_code)
    extra = "extra_special_tokens" if transformers.__version__ >= "5" else "additional_special_tokens"
    tokenizer.add_special_tokens({extra: [AUDIO_TOKEN]}, **{f"replace_{extra}": False})
    tokenizer.chat_template = chat_template(tokenizer, run, apart)
    extractor = MtbiFeatureExtractor(max_seconds=run.recipe.plan.max_audio_seconds)
    geometry = asdict(FrameGeometry.from_config(model))
    return MtbiProcessor(extractor, tokenizer, tokenizer.chat_template, geometry)


def chat_template(tokenizer: Any, run: TrainedRun, apart: bool) -> str:
    """The LLM's template with messages that hold recordings, and the recipe's system prompt, variables and order of prompt.

    `apart` adds marks for `MtbiProcessor`, which tokenises the parts of a dialogue as in training.
    """
    llm_template, behaviour = tokenizer.get_chat_template(), run.recipe.behaviour
    constants = {
        **TEMPLATE_VARIABLES,
        **behaviour.template_variables,
        "AUDIO": AUDIO_TOKEN,
        "PROMPT_FIRST": behaviour.prompt_first,
        "APART": APART if apart else "",
        "SPACE": "" if apart and run.chat.tokens.prefixes_space else " ",
    }
    lines = [f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in constants.items()]
    prompt = run.chat.tokens.harmless(behaviour.system_prompt)
    system = SYSTEM.replace("PROMPT", json.dumps(prompt)) if prompt else ""
    return "".join(lines) + fixed_clock(llm_template, TODAY) + FLATTEN + system + llm_template


def make_config(run: TrainedRun, audio_token_id: int, merged: bool) -> MtbiConfig:
    """The configuration from which the model is built again."""
    model = run.model
    parts = asdict(run.recipe.model) | {"trust_remote_code": False}
    if merged:
        parts |= {"llm_lora": asdict(LoraConfig()), "encoder_lora": asdict(LoraConfig())}
    return MtbiConfig(
        parts=parts,
        text_config=model.llm.config.to_dict(),
        encoder_config=describe_encoder(run.recipe.model.encoder, run.recipe.model.trust_remote_code) if merged else None,
        complete=merged,
        audio_token_id=audio_token_id,
        embedding_rms=embedding_rms(model.llm)[0],
        prompt_first=run.recipe.behaviour.prompt_first,
        silence_ids=run.chat.tokenizer.encode(run.recipe.train.start_silence, add_special_tokens=False),
        silence_classes=run.recipe.loss.alignment_tokens,
        dtype=model.dtype,
        architectures=[MtbiForConditionalGeneration.__name__],
        eos_token_id=run.chat.end_id,
    )


def merge_lora(model: nn.Module) -> None:
    """Add low-rank updates to their weights, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()  # type: ignore[operator]
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())


def shown_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without the paths of the machine that trained."""
    shown = {key: value for key, value in recipes.to_dict(recipe).items() if key not in PRIVATE}
    shown["train"].pop("copy_to")
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=120)


def card(run: TrainedRun, layout: str) -> str:
    """The model card: what the model is, how to use it, what was measured."""
    recipe, model = run.recipe, run.recipe.model
    encoders = encoder_facts(model.encoder, model.trust_remote_code).sources
    bases = [name for name in (model.llm, *encoders) if "/" in name and not Path(name).exists()]
    front = yaml.safe_dump({"library_name": "transformers", "pipeline_tag": TASK, **({"base_model": bases} if bases else {})})
    table = run.folder / "evaluation" / run.checkpoint.name / "table.md"
    measured = table.read_text(encoding="utf-8") if table.is_file() else "Not measured: `mtbi evaluate` had not been run.\n"
    llm, *names = (path if path in bases else Path(path).name for path in (model.llm, *encoders))
    layers = model.llm_trainable
    changed = "" if layers == NONE else f"Layers of the text LLM were trained too, with their own weights: {layers}.\n"
    encoder = " and ".join(f"`{name}`" for name in names)
    return f"""---
{front}---

# {recipe.name}

A speech LLM: the speech encoder {encoder} and a trained adapter (`{model.adapter.kind}`) give speech to the text LLM
`{llm}`. It was trained with mtbi {versions.installed("mtbi")}, an implementation of multi-task behaviour imitation (arXiv
2505.18644): `{run.checkpoint.name}` of {recipe.train.steps} steps, {recipe.interleave.share:.0%} of the utterances
interleaved with their text. Settings: `recipe.yaml`.
{changed}The weights here are {LAYOUTS[layout].weights}.

{LAYOUTS[layout].usage}
Speech is 16 kHz mono of at most {recipe.plan.max_audio_seconds:g} seconds; files of other rates are resampled. The model
imitates the answers of its text LLM about a transcript. It was not trained to recognise tone, emotion or speakers.

## Measured

{measured}"""
