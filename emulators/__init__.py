"""Labels in, spectra out: the synthesiser, grids of spectra, and the emulator that learns them.

Importing this package switches JAX to 64-bit types: the chemistry of an atmosphere, the phase of
a wavelength and sums of chi^2 need them. Networks and line profiles stay in float32 by their own
declared types. It also keeps jaxlib's CPU backend from a deadlock (`emulators.runtime`).
"""

from emulators.runtime import configure

configure()

from emulators.baselines import TheCannon, ThePayne  # noqa: E402
from emulators.emulator import Emulator, load_emulator  # noqa: E402
from emulators.grid import SpectralGrid  # noqa: E402
from emulators.labels import LabelSpace  # noqa: E402
from emulators.physics.synthesizer import LTESynthesizer, Synthesizer  # noqa: E402
from emulators.train import train  # noqa: E402
from emulators.transformer_payne import TransformerPayne  # noqa: E402

__all__ = [
    "Emulator",
    "LTESynthesizer",
    "LabelSpace",
    "SpectralGrid",
    "Synthesizer",
    "TheCannon",
    "ThePayne",
    "TransformerPayne",
    "load_emulator",
    "train",
]
