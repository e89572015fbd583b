"""Tiny random models and packed batches for every test of this folder."""

from tiny_models import folder, heard, make_model, pack_rows, packed

__all__ = ["folder", "heard", "make_model", "pack_rows", "packed"]
