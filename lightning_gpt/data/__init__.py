"""Corpora and the LightningDataModules that feed training from them."""

from lightning_gpt.data.token_data import TokenData

__all__ = ["TokenData"]
