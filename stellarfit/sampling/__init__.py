"""Posterior sampling: one contract, backends of NumPyro and BlackJAX."""

from .posterior import Posterior
from .sample import BACKENDS, sample

__all__ = ["BACKENDS", "Posterior", "sample"]
