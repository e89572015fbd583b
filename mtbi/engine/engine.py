"""The model inside DeepSpeed: configuration, one training step, and the float32 state that checkpoints keep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.ranks import Ranks
from mtbi.batches.loader import LoadedStep
from mtbi.engine import memory
from mtbi.engine.agreement import attempt, settle
from mtbi.engine.checkpoint import Snapshot, same_parameters
from mtbi.engine.schedule import learning_rate
from mtbi.engine.seeding import seed_micro_batch
from mtbi.engine.sums import StepSums, Sums
from mtbi.errors import UserError
from mtbi.llm import back_end, precision
from mtbi.model import self_test
from mtbi.model.flops import LLMSize, count
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import ModelConfig, Recipe, TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def micro_batches(recipe: Recipe, world: int) -> int:
    """Micro-batches of each process in a global step."""
    return math.ceil(math.ceil(recipe.plan.rows_per_step / world) / recipe.plan.rows_per_micro_batch)


def read_config(path: Path | str, recipe: Recipe, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """A DeepSpeed configuration with every `auto` that the recipe decides filled in. Raises UserError for a wrong one."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"--deepspeed {path}: not a DeepSpeed configuration: {error}. Choose one of ds_configs/.") from error
    train = recipe.train
    decided: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": recipe.plan.rows_per_micro_batch,
        "gradient_accumulation_steps": micro_batches(recipe, world),
        "gradient_clipping": train.grad_clip,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": train.learning_rate,
                "betas": [train.beta1, train.beta2],
                "weight_decay": train.weight_decay,
                "torch_adam": True,
            },
        },
    }
    for key, value in decided.items():
        if config.get(key, "auto") != "auto":
            raise UserError(f'{path}: "{key}" must be "auto"; the recipe decides it (mtbi recipe show)')
        config[key] = value
    if config.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 1, 2 or 3")
    if recipe.model.llm_fp8 and config["zero_optimization"]["stage"] == 3:
        raise UserError(
            f"{path}: model.llm_fp8 keeps each process's LLM whole: use ds_configs/zero1.json or ds_configs/zero2.json"
        )
    if recipe.model.compile and config["zero_optimization"]["stage"] == 3:
        raise UserError(
            f"{path}: model.compile needs each process's LLM whole: use ds_configs/zero1.json or ds_configs/zero2.json"
        )
    return config


def decided_model(recipe: Recipe, zero: dict[str, Any], device: torch.device, world: int) -> ModelConfig:
    """The recipe's model with `activation_checkpointing: auto` decided, on GPUs by the estimate of memory, which rank 0 tells.

    `zero` is DeepSpeed's `zero_optimization`. GPUs are taken to be alike, so that all processes decide the same.
    Raises UserError for models whose configuration cannot be read.
    """
    if recipe.model.activation_checkpointing != "auto":
        return recipe.model
    if device.type != "cuda":
        return replace(recipe.model, activation_checkpointing="off")
    there = torch.cuda.get_device_properties(device).total_memory / 1e9
    node = zero.get("zero_hpz_partition_size", 1)
    chosen, need = memory.decide(recipe, memory.sizes_of(recipe), world, zero["stage"], there, node)
    if torch.distributed.get_rank() == 0:
        room = f"{memory.USABLE_SHARE:.0%} of {there:.0f} GB can be used"
        print(f"model.activation_checkpointing is {chosen}: estimated {need:.1f} GB without it, {room}", flush=True)
    return replace(recipe.model, activation_checkpointing=chosen)


def decided_attention(model: ModelConfig, device: torch.device, dtype: torch.dtype, longest_tokens: int | None) -> ModelConfig:
    """The model with `attention: auto` decided for the plan's longest dialogue (LLM positions), which rank 0 tells.

    Raises UserError for an LLM, a length or a choice that packed rows cannot be computed with.
    """
    chosen, why = back_end.decide(model, device, dtype, longest_tokens)
    if model.attention == "auto" and torch.distributed.get_rank() == 0:
        print(f"model.attention is {chosen}: {why}", flush=True)
    return replace(model, attention=chosen)


def parameter_groups(parameters: dict[str, torch.nn.Parameter], train: TrainConfig) -> list[dict[str, Any]]:
    """The encoder's own weights may have a learning rate of their own."""
    encoder = [parameter for name, parameter in parameters.items() if name.startswith("encoder.")]
    others = [parameter for name, parameter in parameters.items() if not name.startswith("encoder.")]
    share = train.encoder_learning_rate / train.learning_rate if train.encoder_learning_rate else 1.0
    groups = [{"params": others, "rate_share": 1.0}, {"params": encoder, "rate_share": share}]
    return [group for group in groups if group["params"]]


class Engine:
    """A SpeechLLMModule trained by DeepSpeed on `world` processes."""

    def __init__(
        self, recipe: Recipe, ds_config: Path | str, tasks: int, device: torch.device, world: int, snapshot: Snapshot | None,
        longest_tokens: int | None = None,
    ) -> None:  # fmt: skip
        """Build the model, put a checkpoint's weights into it, and try a packed row (`mtbi.model.self_test`).

        `longest_tokens` is the plan's longest dialogue in LLM positions; None = any length. Raises UserError for wrong
        configurations, and for an LLM whose packed rows are not its dialogues.
        """
        import deepspeed

        from mtbi.engine import zero3

        self.recipe, self.device, self.world, self.tasks = recipe, device, world, tasks
        self.dtype = precision.of(recipe.precision, device)
        config = read_config(ds_config, recipe, world, self.dtype)
        self.stage = int(config["zero_optimization"]["stage"])
        model = decided_model(recipe, config["zero_optimization"], device, world)  # before ZeRO-3 partitions what is built
        model = decided_attention(model, device, self.dtype, longest_tokens)
        torch.manual_seed(recipe.seed)
        partitioned = config if self.stage == 3 else None
        built = attempt(lambda: build_speech_llm(model, recipe.loss, self.dtype, device, tasks, partitioned, longest_tokens))
        # Under ZeRO-3 processes already exchange weights while they build: the launcher and the watchdog end the others.
        own = Ranks(torch.distributed.get_rank(), world, 0, world) if world > 1 else Ranks(0, 1, 0, 1)
        self.model: SpeechLLMModule = built.get() if self.stage == 3 else settle(own, built)
        if snapshot and (wrong := same_parameters(snapshot.trainable, self.model)):
            raise UserError(f"{recipe.run_dir}: its checkpoints are of another model ({wrong}); choose another run_dir.")
        self.parameters = self.model.trainable_parameters()
        self.trainable_size = count(self.parameters.values())
        if self.stage == 3:
            zero3.prepare(self.model)
        self.llm_size = LLMSize.of(self.model.llm)
        self.ds, self.optimizer, _, _ = deepspeed.initialize(
            model=self.model, model_parameters=parameter_groups(self.parameters, recipe.train), config=config
        )
        if self.stage == 3:
            zero3.use_frozen_linear()
        self.optimizer_steps = 0
        self._make_moments()
        if snapshot:
            self.restore(snapshot)
        self_test.check(self.model.llm, recipe.model.llm, device)
        self.model.train()  # models are read in evaluation mode; the first step shall compute as one after an evaluation

    # --- one step ----------------------------------------------------------------------------------------------------

    def train_step(self, step: LoadedStep, number: int, stop: bool) -> StepSums:
        """Forward and backward over this process's micro-batches and one update; returns sums over all processes.

        The gradient is that of Σ weight·loss over the whole global step ÷ Σ weight, whatever the split: the denominator
        comes from the plan, and DeepSpeed's mean over processes is undone. A micro-batch in which any process finds a
        loss that is not finite, or no process a target, is left out by all of them. A step in which all are left out changes
        nothing, weight decay included, nor does one for which some process has no data (`failed`): no other step may follow
        that. Random draws depend on the seed, `number` and the rows alone (`mtbi.engine.seeding`).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.recipe.train) * group["rate_share"]
        scale = self.world / step.weight_total if step.weight_total else 0.0
        total, used = Sums(self.device), 0
        for place, micro in enumerate(step.micro_batches, start=1):
            batch, last = micro.to(self.device), place == step.parts
            seed_micro_batch(self.recipe.seed, number, step.first_row(place - 1))
            out = self.ds(batch)
            failed = step.loader.failure is not None
            counts = total.add(out, stop and place == 1, step.unreadable if last else 0, failed)
            if total.failed:
                return total.result(0.0)  # gradients of earlier micro-batches stay behind: the run ends now
            if last and used and not counts:  # what came before still counts: close the step with a batch of nothing
                out, counts = self.ds(batch.emptied()), True
            if counts:
                used += 1
                self.ds.set_gradient_accumulation_boundary(last)
                self.ds.backward(out.loss * scale, scale_wrt_gas=False)
                self.ds.step()
        norm = 0.0
        if used:
            self.optimizer_steps += 1
            norm = float(self.ds.get_global_grad_norm())
        return total.result(norm)

    @torch.no_grad()
    def evaluate_step(self, step: LoadedStep) -> StepSums:
        """The same sums without training. All tasks count as the first: other shards may know other tasks."""
        self.ds.eval()
        total = Sums(self.device)
        for micro in step.micro_batches:
            batch = micro.to(self.device)
            batch = replace(batch, target_task=torch.zeros_like(batch.target_task))
            total.add(self.ds(batch), failed=step.loader.failure is not None)
            if total.failed:
                break
        self.ds.train()
        return total.result(0.0)

    # --- what a checkpoint keeps -------------------------------------------------------------------------------------

    def snapshot(self, state: dict[str, Any]) -> Snapshot:
        """Trainable parameters and moments in full float32, on the CPU. All processes must call it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        trainable, moments = {}, {}
        state = {**state, "optimizer_steps": self.optimizer_steps, "precision": precision.name_of(self.dtype)}
        for name, parameter in self.parameters.items():
            trainable[name] = full(safe_get_full_fp32_param(parameter), parameter)
            for moment in MOMENTS:
                moments[f"{name}.{moment}"] = full(safe_get_full_optimizer_state(parameter, moment), parameter)
        return Snapshot(trainable, moments, state)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what `snapshot` took, on any number of processes and any ZeRO stage."""
        from deepspeed.runtime.zero import GatheredParameters

        for name, parameter in self.parameters.items():
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
                parameter.copy_(snapshot.trainable[name])  # what the next forward pass computes with
            self._put(parameter, snapshot.trainable[name], None)  # and the float32 copy that Adam steps
            for moment in MOMENTS:
                self._put(parameter, snapshot.moments[f"{name}.{moment}"], moment)
        self.optimizer_steps = int(snapshot.state["optimizer_steps"])
        for part in self._flat_parameters():
            self._adam.state[part]["step"] = torch.tensor(float(self.optimizer_steps))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def _flat_parameters(self) -> list[Tensor]:
        """The float32 partitions that Adam steps."""
        if self.stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _make_moments(self) -> None:
        """Adam makes its moments at the first step; reading or setting them before that needs them now.

        ZeRO-1 and 2 link parameters to them once, after the first group has stepped: the others' must be there by then.
        """
        for part in self._flat_parameters():
            if not self._adam.state[part]:
                zeros = {moment: torch.zeros_like(part) for moment in MOMENTS}
                self._adam.state[part].update(step=torch.tensor(0.0), **zeros)
        if self.stage != 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: Tensor, value: Tensor, moment: str | None) -> None:
        from deepspeed import utils

        value = value.to(self.device)
        if self.stage != 3:
            if moment:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            else:
                utils.safe_set_full_fp32_param(parameter, value)
            return
        # DeepSpeed's `full` setters do not pad a value that the number of processes does not divide; the `local` ones take our
        # own part of it.
        size = utils.safe_get_local_fp32_param(parameter).numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
        mine = padded.narrow(0, size * torch.distributed.get_rank(), size)
        if moment:
            utils.safe_set_local_optimizer_state(parameter, mine, moment)
        else:
            utils.safe_set_local_fp32_param(parameter, mine)


def full(value: Tensor, parameter: Tensor) -> Tensor:
    """A gathered float32 value in the parameter's shape, on the CPU, with memory of its own."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return value.detach().float().reshape(shape).to("cpu", copy=True).contiguous()
