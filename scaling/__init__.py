"""How an emulator's error falls with its size, its data and its compute.

Empty in this release. The package holds its place between `emulators` and `stellarfit`, so that
the direction of imports (``emulators <- scaling <- stellarfit``) is enforced from the first day.
Maximal update parametrization, sweeps, scaling laws, planning and the choice of an emulator for a
target precision will live here; nothing in `emulators` or `stellarfit` depends on them.
"""
