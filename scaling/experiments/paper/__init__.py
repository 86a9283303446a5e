"""The scaling experiment of the paper, on our own spectra."""
