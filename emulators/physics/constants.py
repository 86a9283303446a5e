"""Physical constants in cgs (CODATA 2018) and the few derived ones that spectra need."""

SPEED_OF_LIGHT = 2.99792458e10  # cm/s
PLANCK = 6.62607015e-27  # erg s
BOLTZMANN = 1.380649e-16  # erg/K
BOLTZMANN_EV = 8.617333262e-5  # eV/K
ELECTRON_MASS = 9.1093837015e-28  # g
ATOMIC_MASS = 1.66053906660e-24  # g
BOHR_RADIUS = 5.29177210903e-9  # cm
RYDBERG_EV = 13.605693122994
THOMSON = 6.6524587321e-25  # cm^2
# pi e^2 / (m_e c): the integrated cross-section of one classical oscillator, cm^2 Hz
CLASSICAL_CROSS_SECTION = 0.026540087
HC_OVER_K = PLANCK * SPEED_OF_LIGHT / BOLTZMANN * 1e8  # Angstrom K
