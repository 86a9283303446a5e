"""How an emulator's error falls with its size, its data and its compute.

Maximal update parametrization and its checks; sweeps over sizes, spectra and budgets; the law that
they follow; what to train by it, and which emulator is good enough.
"""

from scaling.choose import choose_emulator
from scaling.coordinate_check import check_coordinates
from scaling.law import ScalingLaw
from scaling.mup import MaximalUpdate
from scaling.plan import plan
from scaling.sweep import Sweep

__all__ = [
    "MaximalUpdate",
    "ScalingLaw",
    "Sweep",
    "check_coordinates",
    "choose_emulator",
    "plan",
]
