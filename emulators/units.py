"""Two numbers of every spectrograph, in the units that spectra are measured in."""

SPEED_OF_LIGHT = 299_792.458  # km/s
FWHM = 2.3548200450309493  # of a Gaussian, in units of its standard deviation
