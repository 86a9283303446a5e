"""One-dimensional LTE spectral synthesis: labels in, flux and continuum out."""
