"""Files as surveys write them, to their published data models, by astropy alone."""

from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table

NUM = 400


def flux_of(wavelength):
    """Something with structure, different at every wavelength."""
    return 2.0 + 0.3 * np.sin(wavelength / 3) + 1e-4 * wavelength


def log_grid(start, num=NUM, step=1e-4):
    return 10 ** (np.log10(start) + step * np.arange(num))


def save(path, *units):
    fits.HDUList([*units]).writeto(path, output_verify="exception", checksum=True)
    return path


def image(data, name="", **cards):
    unit = fits.ImageHDU(data, name=name or None)
    unit.header.update(cards)
    return unit


def primary(data=None, **cards):
    unit = fits.PrimaryHDU(data)
    unit.header.update(cards)
    return unit


def table(name, *columns):
    """Of (name, format, array) or (name, format, array, unit)."""
    made = [fits.Column(name=c[0], format=c[1], array=c[2], unit=(*c, None)[3]) for c in columns]
    return fits.BinTableHDU.from_columns(made, name=name)


def apstar(path, mask=None, one_visit=False, num=8575):
    """SDSS datamodel apStar: HDU1 flux, HDU2 error, HDU3 mask, each [2 + visits, 8575]."""
    wavelength = 10 ** (4.179 + 6e-6 * np.arange(num))
    axis = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1, "CTYPE1": "LOG-LINEAR"}
    flux = flux_of(wavelength)
    rows = [flux] if one_visit else [flux, flux * 0 + 7, flux * 0 + 8]
    mask = np.zeros(num, np.int64) if mask is None else mask
    shape = (lambda a: a[0]) if one_visit else np.array
    return save(
        path,
        primary(OBJID="2M00000001+0000001", NVISITS=1, VHELIO=15.9, SNR=100.0, **axis),
        image(shape(rows), BUNIT="Flux (10^-17 erg/s/cm^2/Ang)", **axis),
        image(shape([0.01 * np.array(r) for r in rows]), BUNIT="Err (10^-17 erg/s/cm^2/Ang)"),
        image(shape([mask] + [mask * 0] * (len(rows) - 1)), BUNIT="Pixel bitmask"),
        image(shape(rows), BUNIT="Sky (10^-17 erg/s/cm^2/Ang)"),
    ), wavelength


def apvisit(path, bc: float | None = 20.0):
    """SDSS datamodel apVisit: [3, 4096] a detector a row, each falling in wavelength."""
    starts = ((16960, 16480), (16430, 15860), (15810, 15140))
    wavelength = np.array([np.linspace(*ends, 4096) for ends in starts])
    flux = flux_of(wavelength).astype(np.float32)
    mask = np.zeros(flux.shape, np.int16)
    mask[0, 5], mask[1, 6] = -32768, 1  # the sign bit, which means nothing, and BADPIX
    cards = {} if bc is None else {"BC": bc, "VRAD": -50.0}
    return save(
        path,
        primary(OBJID="2M01183798+8403419", SURVEY="apogee", **cards),
        image(flux, BUNIT="Flux (10^-17 erg/s/cm^2/Ang)"),
        image(flux * np.float32(0.01), BUNIT="Flux Error (10^-17 erg/s/cm^2/Ang)"),
        image(mask, BUNIT="Flag Mask (bitwise)"),
        image(wavelength, BUNIT="Wavelength (Ang)"),
    ), wavelength.ravel()


def sdss(path, and_mask=None, wdisp: Any = 1.0, version="v5_13_2"):
    """SDSS datamodel spec, HDU1 COADD."""
    wavelength = log_grid(3800.0)
    flux = flux_of(wavelength)
    and_mask = np.zeros(NUM, np.int32) if and_mask is None else and_mask
    coadd = table(
        "COADD",
        ("flux", "E", flux),
        ("loglam", "E", np.log10(wavelength)),
        ("ivar", "E", 1e4 / flux**2),
        ("and_mask", "J", and_mask),
        ("or_mask", "J", np.full(NUM, 1 << 23, np.int32)),
        ("wdisp", "E", np.broadcast_to(wdisp, NUM)),
    )
    cards = {"TELESCOP": "SDSS 2.5-M", "BUNIT": "1E-17 erg/cm^2/s/Ang", "VERS2D": version}
    return save(path, primary(PLATEID=4055, MJD=55359, FIBERID=600, **cards), coadd), wavelength


def mwm(path, filled=("BOSS/APO", "APOGEE/APO")):
    """SDSS-V mwmStar: four extensions, those of instruments that did not see the star empty."""
    units, grids = [], {}
    for name in ("BOSS/APO", "BOSS/LCO", "APOGEE/APO", "APOGEE/LCO"):
        apogee = name.startswith("APOGEE")
        grid = 10 ** (4.179 + 6e-6 * np.arange(NUM)) if apogee else log_grid(3700.0)
        rows = int(name in filled)
        vector = f"{NUM}E"
        flux = np.broadcast_to(flux_of(grid), (rows, NUM))
        flags = np.zeros((rows, NUM), np.int64)
        flags[:, 3], flags[:, 4] = 1, 1 << 23  # BADPIX of APOGEE; BRIGHTSKY of BOSS
        units.append(
            table(
                name,
                ("sdss_id", "K", np.full(rows, 77)),
                ("telescope", "6A", np.full(rows, "apo25m")),
                ("min_mjd", "J", np.full(rows, 59000)),
                ("max_mjd", "J", np.full(rows, 59100)),
                ("wavelength", f"{NUM}D", np.broadcast_to(grid, (rows, NUM))),
                ("flux", vector, flux),
                ("ivar", vector, 1e4 / flux**2),
                ("pixel_flags", f"{NUM}K", flags),
                ("snr", "E", np.full(rows, 100.0)),
            )
        )
        grids[name] = grid
    return save(path, primary(V_ASTRA="0.5.0", SDSS_ID=77), *units), grids


DESI_GRIDS = {
    "b": 3600.0 + 0.8 * np.arange(NUM),
    "r": 5760.0 + 0.8 * np.arange(NUM),
    "z": 7520.0 + 0.8 * np.arange(NUM),
}
DESI_TARGETS = [39627764312509541, 39627764312509542, 39627764312509543]


def diagonals(matrix, num=11):
    """As desispec.resolution.Resolution stores a matrix."""
    offsets = np.arange(num // 2, -(num // 2) - 1, -1)
    data = np.zeros((num, len(matrix)))
    for index, offset in enumerate(offsets):
        where = slice(offset, None) if offset >= 0 else slice(None, offset)
        data[index, where] = np.diagonal(matrix, int(offset))
    return data


def desi(path, arms="brz", mask=None, sigma=None, dark=()):
    """desidatamodel coadd: the fluxes of star i are multiplied by i + 1; row 1 is a sky fibre."""
    num = len(DESI_TARGETS)
    fibermap = table(
        "FIBERMAP", ("TARGETID", "K", DESI_TARGETS), ("OBJTYPE", "3A", ["TGT", "SKY", "TGT"])
    )
    units = [primary(), fibermap]
    for arm in arms:
        grid, name = DESI_GRIDS[arm], arm.upper()
        flux = np.array([flux_of(grid) * (i + 1) for i in range(num)], np.float32)
        ivar = np.where(arm in dark, 0, 1e4 / flux**2).astype(np.float32)
        bits = np.zeros((num, NUM), np.int32)
        if mask is not None:
            bits[2] = mask
        i, j = np.indices((NUM, NUM))
        widths = np.full(NUM, 0.9) if sigma is None else sigma
        matrix = np.exp(-0.5 * ((j - i) / widths[:, None]) ** 2)
        rows = diagonals(matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
        units += [
            image(grid, f"{name}_WAVELENGTH", BUNIT="Angstrom"),
            image(flux, f"{name}_FLUX", BUNIT="10**-17 erg/(s cm2 Angstrom)"),
            image(ivar, f"{name}_IVAR"),
            fits.CompImageHDU(bits, name=f"{name}_MASK"),
            image(np.array([rows] * num), f"{name}_RESOLUTION"),
        ]
    return save(path, *units), DESI_GRIDS


def galah(path):
    """GALAH DR3: the second extension is the relative error."""
    wavelength = 4713.0 + 0.046 * np.arange(NUM)
    axis = {"CRVAL1": 4713.0, "CDELT1": 0.046, "CRPIX1": 1.0}
    flux = 100 * flux_of(wavelength)
    names = ("input_sigma", "no_sky_spectrum", "no_sky_sigma", "normalised_spectrum")
    others = [image(flux * 0 + v, n, **axis) for n, v in zip(names, (0.01, 5, 5, 1), strict=True)]
    head = primary(flux, ORIGIN="GALAH", OBJECT="170418003701205", **axis)
    return save(path, head, *others), wavelength


def lamost_old(path, and_mask=None, data=None):
    """LAMOST LRS to DR7: rows flux, ivar, wavelength, and-mask, or-mask."""
    wavelength = log_grid(3900.0)
    flux = flux_of(wavelength)
    and_mask = np.zeros(NUM) if and_mask is None else and_mask
    rows = [flux, 1e4 / flux**2, wavelength, and_mask, np.ones(NUM)]
    data = np.array(rows, np.float32) if data is None else data
    head = primary(data, TELESCOP="LAMOST", DESIG="LAMOST J220848.54-020324.3", OBSID=353301001)
    return save(path, head), wavelength


def lamost_new(path):
    """LAMOST LRS from DR8: the same in one row of a table, and a normalised flux."""
    wavelength = log_grid(3900.0)
    flux = flux_of(wavelength)
    rows = {"FLUX": flux, "IVAR": 1e4 / flux**2, "WAVELENGTH": wavelength, "ANDMASK": flux * 0,
            "ORMASK": flux * 0 + 1, "NORMALIZATION": flux * 0 + 1}  # fmt: skip
    coadd = table("COADD", *((k, f"{NUM}E", v[None]) for k, v in rows.items()))
    return save(path, primary(TELESCOP="LAMOST", DESIG="LAMOST J22", OBSID=1), coadd), wavelength


MRS_GRIDS = {"blue": log_grid(4950.0, step=1e-5), "red": log_grid(6300.0, step=1e-5)}


def lamost_mrs(path, arms=("blue", "red"), coadd=True, dark=(), vectors=False):
    """LAMOST MRS: COADD_B and COADD_R, and the single exposures; or vectors in one row."""
    units: list[Any] = [primary(TELESCOP="LAMOST", DESIG="LAMOST J06", OBSID=2)]
    for arm in arms:
        grid, letter = MRS_GRIDS[arm], arm[0].upper()
        flux = flux_of(grid)
        ivar = np.where(arm in dark, 0, 1e4 / flux**2)
        zero = np.zeros(NUM, np.int32)
        if vectors:
            rows = {"FLUX": flux, "IVAR": ivar, "WAVELENGTH": grid, "ANDMASK": zero, "ORMASK": zero}
            units.append(
                table(f"COADD_{letter}", *((k, f"{NUM}D", v[None]) for k, v in rows.items()))
            )
            continue
        shared = (("FLUX", "E", flux), ("IVAR", "E", ivar), ("LOGLAM", "D", np.log10(grid)))
        if coadd:
            masks = (("ANDMASK", "J", zero), ("ORMASK", "J", zero + 1))
            units.append(table(f"COADD_{letter}", *shared, *masks))
        units.append(table(f"{letter}-84420148", *shared, ("PIXMASK", "J", zero)))
    return save(path, *units), MRS_GRIDS


def gaia(path, raw=False, votable=False):
    """Gaia DR3 rvs_mean_spectrum: nm, NaN at an edge; raw: a row a star, without wavelengths."""
    wavelength = 846.0 + 0.01 * np.arange(2401)
    flux = (0.9 + 0.1 * np.sin(wavelength)).astype(np.float32)
    flux[:7] = np.nan
    error = np.full(2401, 0.02, np.float32)
    if raw:
        flux, error = np.array([flux, flux - 0.5]), np.array([error, error])
        columns = [("source_id", "K", [11, 22]), ("flux", "2401E", flux)]
        units = table("", *columns, ("flux_error", "2401E", error))
        return save(path, primary(), units), wavelength * 10
    columns = [("wavelength", "D", wavelength, "nm"), ("flux", "E", flux)]
    unit = table("", *columns, ("flux_error", "E", error))
    unit.header["HIERARCH source_id"] = 30343944744320
    if votable:
        Table(unit.data).write(path, format="votable")
        return path, wavelength * 10
    return save(path, primary(), unit), wavelength * 10


FOURMOST_WINDOWS = {"blue": 3926.0, "green": 5160.0, "red": 6100.0}


def fourmost(path, high=True, windows=FOURMOST_WINDOWS, meaning="em.wl;obs.atmos", qual=None):
    """4MOST L1: one row of vectors; of the high resolution three windows one after another."""
    pieces = [start + 0.05 * np.arange(NUM) for start in windows.values()]
    grid = np.concatenate(pieces) if high else np.linspace(3700.0, 9500.0, 2 * NUM)
    flux = 1e-17 * flux_of(grid)
    num = len(grid)
    qual = np.zeros(num, np.int16) if qual is None else qual
    unit = table(
        "PHASE3SPECTRUM",
        ("WAVE", f"{num}E", grid[None], "Angstrom"),
        ("FLUX", f"{num}E", flux[None], "erg/(s*cm^2*Angstrom)"),
        ("ERR_FLUX", f"{num}E", flux[None] / 100, "erg/(s*cm^2*Angstrom)"),
        ("QUAL", f"{num}I", qual[None]),
        ("FLUX_NOSS", f"{num}E", flux[None] * 3, "erg/(s*cm^2*Angstrom)"),
    )
    if meaning:
        unit.header["TUCD1"] = meaning
    head = {"INSTRUME": "QMOST", "ORIGIN": "ESO-PARANAL", "SPECSYS": "BARYCENT"}
    return save(path, primary(OBJECT="00033300-2847587", **head), unit), grid


WEAVE_GRIDS = {"blue": 3660.0 + 0.25 * np.arange(NUM), "red": 5790.0 + 0.25 * np.arange(NUM)}


def weave(path, arms=("red",), kind="AWAV", swapped=False):
    """WEAVE L1: fibre i is i + 1 times as bright; 1 is sky; counts times SENSFUNC are fluxes."""
    units = [primary(OBSMODE="MOS", CAMERA="WEAVERED")]
    response = np.linspace(0.5, 2.0, NUM).astype(np.float32)
    for arm in arms:
        grid, name = WEAVE_GRIDS[arm], arm.upper()
        axis = {"CRVAL1": grid[0], "CD1_1": 0.25, "CRPIX1": 1.0, "CUNIT1": "Angstrom"}
        axis |= {"CTYPE1": kind} if kind else {}
        flux = np.array([flux_of(grid) * (i + 1) for i in range(3)])
        data, ivar = flux / response, response**2 * 1e4 / flux**2
        data, ivar = (a.astype(np.float32).T if swapped else a.astype(np.float32)
                      for a in (data, ivar))  # fmt: skip
        units += [
            image(data, f"{name}_DATA", **axis),
            image(ivar, f"{name}_IVAR", **axis),
            image(data * 9, f"{name}_DATA_NOSS", **axis),
            image(ivar, f"{name}_IVAR_NOSS", **axis),
            image(np.array([response] * 3), f"{name}_SENSFUNC", **axis),
        ]
    fibres = table(
        "FIBTABLE",
        ("CNAME", "20A", ["WVE_1", "WVE_2", "WVE_3"]),
        ("TARGUSE", "1A", ["T", "S", "C"]),
        ("Helio_cor", "E", [3.0, 3.0, 3.0]),
    )
    return save(path, *units, fibres), WEAVE_GRIDS
