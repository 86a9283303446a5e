"""How an emulator's error falls with its size, its data and its compute.

Maximal update parametrization, the check that it is one, and the experiment that shows whether the
best learning rate of a small network is that of a wide one.
"""

from scaling.choose import choose_emulator
from scaling.coordinate_check import check_coordinates
from scaling.law import ScalingLaw
from scaling.mup import MaximalUpdate
from scaling.plan import plan

__all__ = ["MaximalUpdate", "ScalingLaw", "check_coordinates", "choose_emulator", "plan"]
