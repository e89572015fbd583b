"""One optimisation step in plain PyTorch, from recordings to an answer: `python examples/train_step.py [SHARDS]`.

SHARDS is what `mtbi data shard` or the demo made, such as runs/demo/data/train/shards; without it,
espeak-ng speaks eight strings of digits.
"""

import sys
import tempfile
from pathlib import Path

import torch

from mtbi import SpeechLLM
from mtbi import recipe as recipes
from mtbi.answers.ask import ask_unanswered
from mtbi.answers.store import AnswerStore
from mtbi.answers.teacher import build_teacher
from mtbi.batches import batch
from mtbi.batches.plan import Plan
from mtbi.corpus.importers import import_corpus
from mtbi.corpus.manifest import read_manifest
from mtbi.demo.corpus import Split, make_split
from mtbi.demo.speech import speak_digits
from mtbi.engine.schedule import learning_rate
from mtbi.llm.chat_format import read_chat
from mtbi.model.frame_counts import FrameGeometry
from mtbi.model.speech_llm import build_speech_llm
from mtbi.shards.read import Shards
from mtbi.shards.write import write_shards
from mtbi.use.open_run import TrainedRun

recipe = recipes.load("demo", ["behaviour.per_utterance=4", "plan.rows_per_step=1", "plan.row_tokens=512"])
chat, device = read_chat(recipe), torch.device("cpu")
scratch = tempfile.TemporaryDirectory(prefix="mtbi-train-step-")
folder = Path(scratch.name)

# --- data: recordings → manifest → the text LLM's answers → shards ----------------------------------------------------
if sys.argv[1:]:
    address = sys.argv[1]
else:
    speak_digits(folder / "recordings", voices=2, recordings=1, seed=1)
    print(import_corpus("fsdd", folder / "recordings", folder / "digits"))
    manifest = make_split(Split("few", "train", strings=8, seed=1), folder / "digits", folder)
    utterances = read_manifest(manifest)
    ask_unanswered(utterances, recipe.behaviour, build_teacher(recipe.model, recipe.behaviour), chat, folder / "answers")
    address = str(folder / "shards")
    write_shards(utterances, folder, AnswerStore(folder / "answers"), chat, address)

# --- one packed batch: the first global step of the plan --------------------------------------------------------------
data = Shards(address, str(folder / "cache"))
plan = Plan(data.index, recipe, FrameGeometry.from_config(recipe.model))
step = next(plan.steps())
packed = batch.build(step.rows, data.__getitem__, plan)
print(f"rows × tokens {tuple(packed.token_ids.shape)}, {len(packed.waveforms)} clips, {len(packed.target_ids)} answer tokens")

# --- one step: only the adapter trains --------------------------------------------------------------------------------
torch.manual_seed(recipe.seed)
model = build_speech_llm(recipe.model, recipe.loss, torch.float32, device, len(data.index.tasks)).train()
optimizer = torch.optim.AdamW(model.trainable_parameters().values(), learning_rate(0, recipe.train))
loss = model(packed).loss / step.weight_total
loss.backward()
optimizer.step()
with torch.no_grad():
    after = model(packed).loss / step.weight_total
print(f"loss {loss.item():.4f}, after one step {after.item():.4f}")

# --- ask (one step teaches little: the demo takes 500) ----------------------------------------------------------------
llm = SpeechLLM(TrainedRun(folder, folder, recipe, model.eval(), chat, device))
print("answer:", llm.ask("say the digits backwards", audio=data[0].waveform, max_new_tokens=24))
