"""Experiments: each a folder with what it runs and the ledger that it left."""
