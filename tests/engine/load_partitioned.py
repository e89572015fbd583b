"""Reads an LLM into ZeRO-3 partitions, as training does, and compares: `python load_partitioned.py FOLDER`. One process."""

from __future__ import annotations

import sys

import torch
from deepspeed.runtime.zero import GatheredParameters
from transformers import AutoModelForCausalLM

from launcher.distributed import start_distributed
from launcher.ranks import find_ranks
from mtbi import recipe as recipes
from mtbi.engine.ds_config import read_ds_config
from mtbi.llm.load import load_llm
from mtbi.recipe import ModelConfig

folder, ds_config = sys.argv[1:]
device = start_distributed(find_ranks())
config = read_ds_config(ds_config, recipes.load("demo"), 1, torch.float32)
whole = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
llm = load_llm(ModelConfig(llm=folder), torch.float32, device, config)
for name, parameter in llm.named_parameters():
    assert hasattr(parameter, "ds_id"), name
    with GatheredParameters([parameter]):
        assert torch.equal(parameter, whole.pop(name)), name
assert not whole, whole.keys()
print("all weights are those on disk")
