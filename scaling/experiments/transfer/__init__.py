"""Learning-rate transfer across widths, measured."""
