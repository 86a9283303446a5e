"""Labels in, spectra out: the synthesiser, grids of spectra, and the emulator that learns them."""
