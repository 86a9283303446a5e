"""Learning-rate sweeps over depth, tokens and head dimension."""
