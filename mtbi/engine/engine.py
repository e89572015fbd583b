"""The speech LLM inside DeepSpeed: its construction, one training step, and the float32 state that checkpoints store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.ranks import Ranks
from mtbi.batches.loader import LoadedStep
from mtbi.engine import memory
from mtbi.engine.agreement import Delivery, attempt, settle
from mtbi.engine.checkpoint import Snapshot, parameter_difference
from mtbi.engine.ds_config import read_ds_config
from mtbi.engine.schedule import learning_rate
from mtbi.engine.seeding import seed_micro_batch
from mtbi.engine.sums import StepSums, Sums
from mtbi.engine.trained import CheckpointSize, counts, parameter_groups
from mtbi.errors import UserError
from mtbi.llm import back_end, precision
from mtbi.model import self_test
from mtbi.model.flops import LLMSize, count
from mtbi.model.speech_llm import SpeechLLMModule, add_frame_classes, build_speech_llm
from mtbi.recipe import ModelConfig, Recipe
from mtbi.shards.index import Index

MOMENTS = ("exp_avg", "exp_avg_sq")


def decided_model(recipe: Recipe, zero: dict[str, Any], device: torch.device, world: int) -> ModelConfig:
    """The recipe's model with `activation_checkpointing: auto` decided: on GPUs by the estimated memory, else `off`.

    `zero` is DeepSpeed's `zero_optimization`. All processes must have the same GPU, so that they decide the same. Rank 0 prints
    the decision. Raises UserError if a model's configuration cannot be read.
    """
    if recipe.model.activation_checkpointing != "auto":
        return recipe.model
    if device.type != "cuda":
        return replace(recipe.model, activation_checkpointing="off")
    gpu_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
    node = zero.get("zero_hpz_partition_size", 1)
    chosen, need = memory.decide(recipe, memory.sizes_of(recipe), world, zero["stage"], gpu_gb, node)
    if torch.distributed.get_rank() == 0:
        room = f"{memory.USABLE_SHARE:.0%} of {gpu_gb:.0f} GB can be used"
        print(f"model.activation_checkpointing is {chosen}: estimated {need:.1f} GB without it, {room}", flush=True)
    return replace(recipe.model, activation_checkpointing=chosen)


def decided_attention(model: ModelConfig, device: torch.device, dtype: torch.dtype, longest_tokens: int | None) -> ModelConfig:
    """The model with `attention: auto` decided. Rank 0 prints the decision.

    `longest_tokens` is the plan's longest dialogue in LLM positions; None = any length. Raises UserError if packed rows cannot
    be computed with this LLM, length or back end.
    """
    chosen, reason = back_end.decide(model, device, dtype, longest_tokens)
    if model.attention == "auto" and torch.distributed.get_rank() == 0:
        print(f"model.attention is {chosen}: {reason}", flush=True)
    return replace(model, attention=chosen)


class Engine:
    """A SpeechLLMModule inside DeepSpeed, on all processes of `ranks`."""

    def __init__(
        self, recipe: Recipe, ds_config: Path | str, tasks: int, device: torch.device, ranks: Ranks, snapshot: Snapshot | None,
        longest_tokens: int | None = None, start: Callable[[SpeechLLMModule], object] | None = None,
        silence: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Build the model, `start` a new one or restore `snapshot`, and check the LLM on a packed row (`mtbi.model.self_test`).

        `tasks` is the number of tasks. `longest_tokens` is the plan's longest dialogue in LLM positions; None = any length.
        `silence` are the token ids of what an adapter frame without a token says (`add_frame_classes`).
        Raises UserError for a wrong configuration, a snapshot of another model, and an LLM that computes a packed row's
        dialogues differently from single ones.
        """
        import deepspeed

        from mtbi.engine import zero3

        self.recipe, self.device, self.world, self.tasks, self.ranks = recipe, device, ranks.world, tasks, ranks
        self.dtype = precision.of(recipe.precision, device)
        config = read_ds_config(ds_config, recipe, self.world, self.dtype)
        self.stage = int(config["zero_optimization"]["stage"])
        model = decided_model(recipe, config["zero_optimization"], device, self.world)  # before ZeRO-3 partitions parameters
        model = decided_attention(model, device, self.dtype, longest_tokens)
        torch.manual_seed(recipe.seed)
        partitioned = config if self.stage == 3 else None
        built = attempt(lambda: build_speech_llm(model, recipe.loss, self.dtype, device, tasks, partitioned, longest_tokens))
        # Under ZeRO-3 the processes exchange weights while they build, so they cannot settle a failure here. The launcher and
        # the watchdog end the others.
        self.model: SpeechLLMModule = built.get() if self.stage == 3 else settle(ranks, built)
        add_frame_classes(self.model, recipe, silence, training=True)
        if snapshot and (different := parameter_difference(snapshot.trainable, self.model)):
            raise UserError(f"{recipe.run_dir}: its checkpoints are of another model ({different}); choose another run_dir.")
        if snapshot is None and start:
            start(self.model)  # before DeepSpeed copies the weights and ZeRO-3 partitions them
        self.parameters = self.model.trainable_parameters()
        self.trainable_size = count(self.parameters.values())
        self.checkpoint_size = CheckpointSize.of(counts(self.parameters.items()), recipe.train)
        if self.stage == 3:
            zero3.prepare(self.model)
        self.llm_size = LLMSize.of(self.model.llm)
        self.ds, self.optimizer, _, _ = deepspeed.initialize(
            model=self.model, model_parameters=parameter_groups(self.parameters, recipe.train), config=config
        )
        if self.stage == 3:
            zero3.use_frozen_linear()
        self.optimizer_steps = 0
        self.finite = torch.ones((), dtype=torch.bool, device=device)  #: whether the loss of the micro-batch is
        for parameter in self.parameters.values():
            parameter.register_hook(self._without_bad_loss)
        self._make_moments()
        if snapshot:
            self.restore(snapshot)
        self_test.check(self.model.llm, recipe.model.llm, device)
        self.model.train()  # models are loaded in evaluation mode

    def count_sources(self, indexes: list[Index]) -> None:
        """Also make the sums by folder of shards, where one of these indexes has several. All processes call it alike."""
        self.model.head.sources = max(1, *(len(index.origins) for index in indexes))

    def train_step(self, step: LoadedStep, number: int, stop: bool) -> StepSums:
        """Forward and backward over this process's micro-batches and one update; returns sums over all processes.

        `number` counts global steps from 0. The loss of the global step is Σ weight·loss ÷ Σ weight over all its targets. The
        gradient is the same however the rows are split: the denominator comes from the plan, and the factor `scale` undoes
        DeepSpeed's mean over processes.

        A micro-batch whose loss is not finite adds nothing to the sums and to the gradient. The host does not wait for the
        device to find this out. The processes exchange what they met once, before the update. If nothing was left, no weight
        changes, not even by weight decay. If a process has no data (`failed`), no weight changes either, and the run must end
        after this step. Dropout depends on the seed, `number` and the rows alone (`mtbi.engine.seeding`).
        """
        alignment_alone = number < self.recipe.train.alignment_steps
        for group in self.optimizer.param_groups:
            share = group["alignment_share" if alignment_alone else "rate_share"]
            group["lr"] = learning_rate(number, self.recipe.train) * share
        scale = self.world / step.weight_total if step.weight_total else 0.0
        total = Sums(self.device)
        for index, micro_batch in enumerate(step.micro_batches):
            batch, last = micro_batch.to(self.device), index == step.micro_batch_count - 1
            seed_micro_batch(self.recipe.seed, number, step.first_row(index))
            out = self.ds(batch, alignment_alone)
            failed = step.loader.failure is not None
            self.finite = total.add(out, stop and last, step.unreadable if last else 0, failed)
            self.ds.set_gradient_accumulation_boundary(last)
            self.ds.backward(out.loss * scale, scale_wrt_gas=False)
            if not last:
                self.ds.step()
        sums = total.exchange()
        if sums.failed:
            return sums  # with gradients left over: the run ends now
        if not sums.weight:
            self._discard_gradients()
            return sums
        self.ds.step()
        self.optimizer_steps += 1
        return sums.with_gradient(float(self.ds.get_global_grad_norm()))

    def _without_bad_loss(self, gradient: Tensor) -> Tensor:
        """A parameter's gradient of a micro-batch, or zeros if the loss is not finite. A factor of 0 would leave NaN."""
        return torch.where(self.finite, gradient, 0)

    def _discard_gradients(self) -> None:
        """End a step without an update, as DeepSpeed's optimizers do after an overflow."""
        self.optimizer.zero_grad(set_to_none=True)
        for name in ("averaged_gradients", "all_grad_tensors"):
            getattr(self.optimizer, name, {}).clear()
        if self.stage != 3:
            self.optimizer.micro_step_id = -1
        self.ds.set_gradient_accumulation_boundary(False)
        self.ds.step()  # counts the micro-batch

    @torch.no_grad()
    def evaluate_step(self, step: LoadedStep) -> StepSums:
        """The same sums without training. All count as the first task, because evaluation shards may have other tasks."""
        self.ds.eval()
        total = Sums(self.device)
        for micro_batch in step.micro_batches:
            batch = micro_batch.to(self.device)
            batch.target_task = torch.zeros_like(batch.target_task)
            total.add(self.ds(batch), failed=step.loader.failure is not None)
        self.ds.train()
        return total.exchange()

    def snapshot(self, state: dict[str, Any], keep: bool = True) -> Snapshot:
        """Trainable parameters and moments in float32, whole, on the CPU. All processes must call it together.

        A process with `keep` false takes part and gets no tensors.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        trainable: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        state = {**state, "optimizer_steps": self.optimizer_steps, "precision": precision.name_of(self.dtype)}
        for name, parameter in self.parameters.items():
            whole = safe_get_full_fp32_param(parameter)
            if keep:
                trainable[name] = full(whole, parameter)
            for moment in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, moment)
                if keep:
                    moments[f"{name}.{moment}"] = full(whole, parameter)
        return Snapshot(trainable, moments, state)

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot, taken on any number of processes and any ZeRO stage. All processes must call it together.

        The first process holds its tensors (`mtbi.engine.agreement.share`). Raises UserError if another one received other
        values.
        """
        from deepspeed.runtime.zero import GatheredParameters

        delivery = Delivery(self.ranks, self.device)
        for name, parameter in self.parameters.items():
            value = delivery.get(name, snapshot.trainable[name])
            with GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
                parameter.copy_(value)  # the weights of the next forward pass
            self._put(parameter, value, None)  # and Adam's float32 copy
            for moment in MOMENTS:
                key = f"{name}.{moment}"
                self._put(parameter, delivery.get(key, snapshot.moments[key]), moment)
        delivery.compare()
        self.optimizer_steps = int(snapshot.state["optimizer_steps"])
        for partition in self._flat_parameters():
            self._adam.state[partition]["step"] = torch.tensor(float(self.optimizer_steps))

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def _flat_parameters(self) -> list[Tensor]:
        """The float32 partitions that Adam updates."""
        if self.stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _make_moments(self) -> None:
        """Create Adam's moments now, so that they can be read and set before the first step, at which Adam creates them.

        ZeRO-1 and ZeRO-2 link parameters to moments after the first group's first step. All groups' must exist by then.
        """
        for partition in self._flat_parameters():
            if not self._adam.state[partition]:
                zeros = {moment: torch.zeros_like(partition) for moment in MOMENTS}
                self._adam.state[partition].update(step=torch.tensor(0.0), **zeros)
        if self.stage != 3:
            self.optimizer._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: Tensor, value: Tensor, moment: str | None) -> None:
        """Set a parameter's moment, or its float32 copy if `moment` is None, from the whole `value`."""
        from deepspeed import utils

        if self.stage != 3:
            if moment:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            else:
                utils.safe_set_full_fp32_param(parameter, value)
            return
        # DeepSpeed's `full` setters do not pad a value whose size the number of processes does not divide. So we pad, and pass
        # this process's part to the `local` setters.
        size = utils.safe_get_local_fp32_param(parameter).numel()
        padded = torch.nn.functional.pad(value.flatten(), (0, size * self.world - value.numel()))
        local = padded.narrow(0, size * torch.distributed.get_rank(), size)
        if moment:
            utils.safe_set_local_optimizer_state(parameter, local, moment)
        else:
            utils.safe_set_local_fp32_param(parameter, local)


def full(value: Tensor, parameter: Tensor) -> Tensor:
    """A gathered value in the parameter's shape, float32, as a new tensor on the CPU."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return value.detach().float().reshape(shape).to("cpu", copy=True).contiguous()
