"""`mtbi data shard`, `encode` and `stats`: from utterances and answers to shards, and what they hold."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtbi.cli.arguments import Group, Options, add_command, add_json, add_recipe, add_slice, chosen_slice, print_json


def add_shard(group: Group) -> None:
    """`mtbi data shard`."""
    command = add_command(
        group,
        "shard",
        run_shard,
        "mtbi data shard work/train/aligned.jsonl work/train/behaviour s3://bucket/train --recipe whisper-large-v3_qwen3-8b",
        "mtbi data shard work/train/aligned.jsonl work/train/behaviour shards/train --audio opus",
        "mtbi data shard work/train/aligned.jsonl work/train/behaviour s3://bucket/train --part $SLURM_ARRAY_TASK_ID/64",
    )
    command.add_argument("manifest", type=Path, help="the aligned manifest")
    command.add_argument("behaviour", type=Path, help="the folder that `mtbi behave` made")
    command.add_argument("out", help="a new folder or s3:// address")
    command.add_argument(
        "--audio", choices=["flac", "opus"], default="flac", help="flac (default) is lossless, opus is smaller"
    )
    add_slice(command)
    add_recipe(command)


def run_shard(options: Options) -> None:
    """Pack audio, word times and answers into MDS shards with an index."""
    from mtbi import files
    from mtbi import recipe as recipes
    from mtbi.answers.store import AnswerStore
    from mtbi.corpus import manifest
    from mtbi.llm.chat_format import read_chat
    from mtbi.shards.write import write_shards

    recipe = recipes.load(options.recipe, options.overrides)
    part = chosen_slice(options)
    utterances = manifest.read_manifest(options.manifest, part)
    store = AnswerStore(options.behaviour, utterances if part else None)
    chat, folder, behaviour = read_chat(recipe), options.manifest.parent, recipe.behaviour
    written = write_shards(
        utterances,
        folder,
        store,
        chat,
        options.out,
        options.audio,
        allow_other_teacher=behaviour.allow_other_teacher,
        hears=behaviour.hears,
        part=part,
        made_from=files.digest(options.manifest) if part else "",
    )
    print(f"{options.out}: {written} of {len(utterances)} utterances{f' of {part}' if part else ''}")


def add_encode(group: Group) -> None:
    """`mtbi data encode`."""
    command = add_command(group, "encode", run_encode)
    command.add_argument("shards", help="a folder or s3:// address of shards")
    command.add_argument("out", help="a new folder or s3:// address")
    add_slice(command, "the shards")
    add_recipe(command)


def run_encode(options: Options) -> None:
    """Store a frozen encoder's output in place of the audio."""
    import torch

    from mtbi import files
    from mtbi import recipe as recipes
    from mtbi.llm import precision
    from mtbi.model import by_length
    from mtbi.model.encoders.build import build_encoder, encoder_facts
    from mtbi.model.frame_counts import FrameGeometry
    from mtbi.shards import features
    from mtbi.shards.index import INDEX_NAME
    from mtbi.shards.open_shards import open_shards

    recipe = recipes.load(options.recipe, options.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = precision.of(recipe.precision, device)  # the features of training without stored ones
    encoder: Any = build_encoder(recipe.model.encoder, dtype, device, recipe.model.trust_remote_code).eval()
    name = encoder_facts(recipe.model.encoder, recipe.model.trust_remote_code).output_name
    shards = open_shards(options.shards, recipe)
    part = chosen_slice(options)
    frames = FrameGeometry.from_config(recipe.model).encoder_frames
    size = features.check_room(shards.index, options.out, frames, encoder.width, part)
    print(f"the encoder's output has {encoder.width} channels and will take about {size / 1e9:.3g} GB", flush=True)

    def encode(waves: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if device.type == "cpu":
            return encoder(waves, lengths)
        return by_length.encode(encoder, waves.to(device), lengths.to(device), lengths.tolist())

    batch_size = features.GPU_BATCH if device.type == "cuda" else features.CPU_BATCH
    made_from = files.digest(shards.folders[0].local / INDEX_NAME) if part else ""
    written = features.write(shards, encode, name, options.out, batch_size, part=part, made_from=made_from)
    print(f"{options.out}: the encoder's output for {written} utterances{f' of {part}' if part else ''}")


def add_stats(group: Group) -> None:
    """`mtbi data stats`."""
    command = add_command(
        group,
        "stats",
        run_stats,
        "mtbi data stats work/train/manifest.jsonl --plots plots",
        "mtbi data stats s3://bucket/train --json | jq .hours",
    )
    command.add_argument("address", help="a manifest, a folder of answers, or a folder or s3:// address of shards")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw PNG files there")
    add_json(command)
    command.add_argument("--cache-dir", default="", help="copies of remote shards (default: in the folder for temporary files)")


def run_stats(options: Options) -> None:
    """Hours, speakers, words and tasks of a manifest or of shards, with histograms; the answers of `mtbi behave` by task."""
    from mtbi.answers import store
    from mtbi.shards import stats

    if store.is_folder(Path(options.address)):
        answers = store.AnswerStore(options.address)
        if options.json:
            print_json(stats.answer_counts(answers))
        else:
            print(stats.render_answers(answers, shutil.get_terminal_size().columns))
        return
    counted = stats.read(options.address, options.cache_dir)
    pictures = stats.plot(counted, options.plots) if options.plots else []
    if options.json:
        print_json(asdict(counted))
        return
    print(stats.render(counted, shutil.get_terminal_size().columns))
    if pictures:
        print(f"\n{options.plots}: {', '.join(picture.name for picture in pictures)}")
