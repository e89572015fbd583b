"""Shards opened as a recipe says: its cache, its limit, its retries, and only those made for its LLM."""

from __future__ import annotations

from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.llm.chat_format import ChatFormat
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards


def open_shards(addresses: str | list[str], recipe: Recipe, chat: ChatFormat | None = None) -> Shards:
    """Open shards with the recipe's `data` settings. Without `data.cache_dir` the cache is `run_dir`/cache.

    With `chat`, raises UserError if the answers are those of another LLM, chat template or system prompt. Only work that
    does not read the answers may leave `chat` out.
    """
    addresses = [addresses] if isinstance(addresses, str) else addresses
    data, other_teacher = recipe.data, recipe.behaviour.allow_other_teacher
    cache_dir = data.cache_dir or f"{recipe.run_dir}/cache"
    shards = Shards(addresses, cache_dir, data.cache_limit_gb, data.retries, other_teacher)
    for address, folder in zip(addresses, shards.folders, strict=True):
        if chat and (difference := identity.difference(folder.index.facts(), chat, other_teacher)):
            raise UserError(
                f"{address}: made with {folder.index.llm}, {difference} than the recipe's ({recipe.model.llm}); run "
                "`mtbi behave` and `mtbi data shard` with this recipe."
            )
    return shards
