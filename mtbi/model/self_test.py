"""Test of a loaded LLM: does it compute the same in packed rows as for each dialogue alone?

Configurations and class flags do not show everything. This test finds an argument of attention that a back end ignores, a layer
that mixes neighbouring tokens, or a kernel that is wrong for some size of head, before training, evaluation or serving.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtbi.batches.batch import RowBuilder, token_tensors
from mtbi.errors import UserError
from mtbi.llm import fp8
from mtbi.llm.last_layer import decoder_of
from mtbi.llm.packing import Packing
from mtbi.model.speech_llm import NO_MASK_SHAPE

#: The packed row: for each group the tokens of its prefix, and of each of its branches.
GROUPS = ((5, (4, 6, 3)), (3, (5, 2, 4)))
#: Largest relative difference of hidden states. Rounding gives about 1e-6 and 1e-2, errors have given 0.1 and more.
BOUNDS = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
FP8_BOUND = 0.2  #: two roundings of an activation may fall to neighbouring 8-bit floats


def check(llm: Any, name: str, device: torch.device | None = None) -> None:
    """Compare packed rows, and the attention that generates answers, with transformers' eager attention.

    Under ZeRO-3 all ranks must call it together. Nothing random is drawn. `name` is the recipe's name of the LLM. `device` is
    where it computes, by default where its embeddings are. Raises UserError if hidden states at the answers differ by more than
    rounding.
    """
    dtype = next(parameter.dtype for parameter in llm.parameters() if parameter.dtype.is_floating_point)
    bound = FP8_BOUND if fp8.size(llm) else BOUNDS.get(dtype, BOUNDS[torch.bfloat16])
    how = f"attention {decoder_of(llm).config._attn_implementation}, {str(dtype).removeprefix('torch.')}, bound {bound:.1%}"
    packed, alone = differences(llm, device)
    for case, difference in (("packed rows", packed), ("answers alone", alone)):
        if not difference < bound:
            raise UserError(
                f"model.llm: {name!r} ({type(llm).__name__}) gives hidden states {difference:.1%} off for {case} ({how}): what "
                "is learnt and answered would be wrong. Choose another LLM, or try model.attention=dense"
            )


@torch.no_grad()
def differences(llm: Any, device: torch.device | None = None) -> tuple[float, float]:
    """Relative differences of hidden states at the answers, from each dialogue alone under transformers' eager attention.

    The first is that of a packed row, the second that of each dialogue alone under the LLM's own back end. Both read
    embeddings, as speech needs. The eager reference reads token ids.
    """
    device = device or llm.get_input_embeddings().weight.device
    builder = row(llm.get_input_embeddings().num_embeddings)
    columns = token_tensors([builder], builder.used)
    ids, positions, group, branch = (columns[name][0].to(device) for name in ("token_ids", "position_ids", "group", "branch"))
    answers = (branch > 0).nonzero()[:, 0]
    modes, decoder = {module: module.training for module in llm.modules()}, decoder_of(llm)  # LoRA's modules may differ
    llm.eval()
    try:
        embeddings = llm.get_input_embeddings()(ids)
        with torch.compiler.set_stance("force_eager"):
            own = _alone(decoder, {"inputs_embeds": embeddings}, group, branch)
            with _eager(llm):
                right = _alone(decoder, {"input_ids": ids}, group, branch)
            packed = decoder(
                inputs_embeds=embeddings[None],
                attention_mask=embeddings.new_zeros(NO_MASK_SHAPE),
                position_ids=positions[None],
                use_cache=False,
                packing=Packing(group[None], branch[None], positions[None], answers),
            ).last_hidden_state[0, answers]
    finally:
        for module, training in modes.items():
            module.training = training
    return _relative(packed, right), _relative(own, right)


def row(vocabulary: int) -> RowBuilder:
    """The packed row, built by the builder that training uses. Its tokens are spread over the vocabulary."""
    plan: Any = None  # only text is added, which needs no plan
    builder = RowBuilder(plan, clips=[], spoken=[], base=0)
    for number, (prefix, branches) in enumerate(GROUPS):
        for branch, length in enumerate((prefix, *branches)):
            ids = [7919 * (builder.used + token + 1) % vocabulary for token in range(length)]
            builder.put(ids, number, branch, prefix if branch else 0)
    return builder


def _alone(decoder: Any, tokens: dict[str, Tensor], group: Tensor, branch: Tensor) -> Tensor:
    """Hidden states `(answer tokens of all branches, hidden)` of the dialogues in a batch, padded on the left.

    `tokens` are the row's `input_ids` or `inputs_embeds`, by that name.
    """
    [(name, values)] = tokens.items()
    sequences = []
    for number, (_, branches) in enumerate(GROUPS):
        for own in range(1, len(branches) + 1):
            sequences.append(((group == number) & ((branch == 0) | (branch == own))).nonzero()[:, 0])
    longest = max(map(len, sequences))
    rows = values.new_zeros(len(sequences), longest, *values.shape[1:])
    mask = torch.zeros(len(sequences), longest, dtype=torch.long, device=values.device)
    for row_number, sequence in enumerate(sequences):
        rows[row_number, longest - len(sequence) :] = values[sequence]
        mask[row_number, longest - len(sequence) :] = 1
    hidden = decoder(
        **{name: rows}, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False
    ).last_hidden_state
    answers = [length for _, branches in GROUPS for length in branches]
    return torch.cat([states[longest - length :] for states, length in zip(hidden, answers, strict=True)])


@contextmanager
def _eager(llm: Any) -> Iterator[None]:
    """A context with transformers' eager attention, which supports every argument of a model."""
    configs = {id(module.config): module.config for module in llm.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, name in before:  # a model before its parts, whose names it would overwrite
            config._attn_implementation = name


def _relative(states: Tensor, right: Tensor) -> float:
    """The largest relative difference of a token between two `(tokens, hidden)`.

    In half precision it is the median over tokens: rounding sometimes sends a token to another expert.
    """
    by_token = (states.float() - right.float()).norm(dim=-1) / right.float().norm(dim=-1)
    return float(by_token.max() if states.dtype == torch.float32 else by_token.median())
