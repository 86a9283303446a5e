"""The quality page: its numbers are the catalogue's, and it is a page that any browser shows."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from fake_catalog import fake_catalog
from fake_star import fake_star
from tiny import tiny_emulator

import stellarfit as sf
from emulators.errors import InputError
from stellarfit.catalog import read_catalog, write_catalog
from stellarfit.cli import main
from stellarfit.flags import SENTENCES, Flag
from stellarfit.quality.repeats import pair_repeats

VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """A page read strictly: every tag is closed where it was opened, and every name used once."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._cells: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"never closed: {self.open}"
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(set(ids)) == len(ids)

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag}: an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._cells = []
        elif tag == "tr":
            self._cells.append([])
        elif tag in ("th", "td"):
            self._cells[-1].append("")
        elif tag == "caption":
            self._caption = ""

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "table":
            assert len({len(row) for row in self._cells}) == 1, self._caption
            assert self._caption not in self.tables
            self.tables[self._caption] = self._cells

    def handle_data(self, data):
        if "caption" in self.open:
            self._caption += data
        elif self.open and self.open[-1] in ("th", "td"):
            self._cells[-1][-1] += data
        elif "style" not in self.open:
            self.text += data

    def column(self, caption: str, column: str) -> list[str]:
        """The cells of a column."""
        head, *rows = self.tables[caption]
        return [row[head.index(column)] for row in rows]

    def find(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def make_page(table, folder, suffix=".fits", **options):
    catalog = write_catalog(table, folder / f"catalog{suffix}")
    written = sf.write_quality_page(catalog, **options)
    return Page(written.path), written


@pytest.fixture(scope="module")
def table():
    return fake_catalog()


@pytest.fixture(scope="module")
def page(table, tmp_path_factory):
    return make_page(table, tmp_path_factory.mktemp("page"))[0]


def test_counts_and_flags_are_the_catalogues(table, tmp_path):
    page, written = make_page(table, tmp_path)
    flags = table["result_flags"]
    bad = (flags & int(Flag.EDGE_TEFF)) != 0
    low = (flags & int(Flag.LOW_SNR)) != 0
    assert written[1:] == (400, 400 - 7 - bad.sum(), bad.sum(), 7)
    assert page.column("Stars", "number") == [
        "400", "7", str(bad.sum()), str((low & ~bad).sum()), str(400 - 7 - (low | bad).sum())
    ]  # fmt: skip
    counts = {"low_snr": low.sum(), "failed": 7, "edge_teff": bad.sum()}
    kinds = {"low_snr": "warn", "failed": "bad", "edge_teff": "bad"}
    head, *rows = page.tables["Flags by how often they are set"]
    assert head == ["flag", "stars", "share", "kind"] and len(rows) == 3
    for text, number, share, kind in rows:
        name, _, sentence = text.partition(": ")
        assert sentence == SENTENCES[Flag[name.upper()]]
        assert int(number) == counts[name] and float(share[:-1]) == pytest.approx(
            counts[name] / 4, abs=0.01
        )
        assert kind == kinds[name]
    assert "Never set: not_converged" in page.text and "k_hat" in page.text
    assert page.column("Made by", "which")[1:3] == ["fake", "0123abcd"]


def test_labels_errors_and_goodness_are_the_catalogues(page, table):
    usable = table[(table["result_flags"] & int(Flag.FAILED | Flag.EDGE_TEFF)) == 0]
    assert f"{len(usable)} stars that no flag forbids to use. Left out: 4 with such" in page.text
    for name, digits in (("teff [K]", 0), ("logg [dex]", 3), ("fe_h [dex]", 3)):
        found = {row[0]: row[1:] for row in page.tables["Percentiles of the stars drawn"]}
        expected = np.percentile(usable[name.split()[0]], [1, 16, 50, 84, 99])
        assert found[name] == [f"{x:.{digits}f}" for x in expected]
    caption = "Median error by S/N a pixel"
    ranges = [text.split(" to ") for text in page.column(caption, "S/N")]
    assert sum(map(int, page.column(caption, "stars"))) == len(usable)
    for i, (low, high) in enumerate(ranges):
        # The edges are printed with four digits: stars beside them may change sides.
        inside = (usable["snr"] >= float(low)) & (usable["snr"] < float(high))
        for column in ("e_teff_stat", "e_fe_h_sys"):
            unit = "K" if "teff" in column else "dex"
            found = float(page.column(caption, f"{column} [{unit}]")[i])
            assert found == pytest.approx(np.median(usable[column][inside]), rel=0.05)
    fitted = table[7:]
    expected = np.percentile(fitted["chi2"] / fitted["dof_effective"], [1, 16, 50, 84, 99])
    assert page.tables["Percentiles of χ²/dof"][1][1:] == [f"{x:.3f}" for x in expected]
    stars = page.column("p-values, were they uniform and as they are", "stars")
    assert stars == [str((fitted["p_value"] < p).sum()) for p in (0.001, 0.01, 0.05, 0.5)]
    ratio = np.nan_to_num(table["chi2"] / 3000.0)
    worst = np.argsort(-ratio)[:6]
    caption = "Stars of largest χ²/dof"
    assert page.column(caption, "source") == table["source"][worst].tolist()
    assert [float(x) for x in page.column(caption, "χ²/dof")] == pytest.approx(
        ratio[worst], rel=1e-3
    )
    assert float(page.column(caption, "χ²/dof")[0]) == 20.0


def test_like_reasons_are_one_row(page):
    caption = "Reasons, by how often they occur"
    assert page.column(caption, "reason") == ["no flux column", "only … pixels"]
    assert page.column(caption, "stars") == ["4", "3"]
    assert page.column(caption, "for example") == ["no flux column", "only 0 pixels"]
    assert page.column(caption, "file") == ["/data/0001.fits", "/data/0000.fits"]


def test_pulls_are_as_wide_as_the_scatter_of_repeats(tmp_path):
    table = fake_catalog(4000, width=1.4, failed=0)
    # What is wrong alike in all observations of a star is no part of a pull.
    table["teff"] += 300.0
    page, _ = make_page(table, tmp_path)
    width = np.array(page.column("Widths of the pulls", "width (rms)"), float)
    error = np.array(page.column("Widths of the pulls", "its error"), float)
    assert page.column("Widths of the pulls", "pairs") == ["1,980"] * 7
    np.testing.assert_allclose(width, 1.4, atol=4 * 1.4 / np.sqrt(2 * 1980))
    np.testing.assert_allclose(error, width / np.sqrt(2 * 1980), atol=6e-4)
    core = np.array(page.column("Widths of the pulls", "half of central 68%"), float)
    np.testing.assert_allclose(core, 1.4, atol=0.12)


def test_no_row_is_in_two_pairs():
    names = np.array(["b", "a", "", "b", "b", "a", "", "b", "a", "c", "b"])
    usable = np.ones(len(names), bool)
    usable[4] = False
    one, other = pair_repeats(names, usable)
    assert sorted(zip(one.tolist(), other.tolist(), strict=True)) == [(0, 3), (1, 5), (7, 10)]
    nothing, _ = pair_repeats(names[:0], usable[:0])
    assert len(nothing) == 0


def test_the_page_is_whole_and_can_be_read_without_its_pictures(page):
    pictures = page.find("img")
    assert len(pictures) == 4
    for picture in pictures:
        kind, _, data = (picture["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        png = base64.b64decode(data, validate=True)
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and len((picture["alt"] or "").split()) > 10
        size = tuple(int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        assert (picture["width"], picture["height"]) == tuple(map(str, size))
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = [attributes["href"] or "" for attributes in page.find("a")]
    assert len(links) == 9 and all(link.startswith("#") and link[1:] in ids for link in links)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        for key in ("src", "href"):
            assert re.match("data:|#", attributes.get(key) or "#")
    assert page.find("html") == [{"lang": "en"}] and len(page.find("h1")) == 1
    assert all(attributes["scope"] in ("row", "col") for attributes in page.find("th"))
    assert "<" not in page.text and "nan" not in page.text.lower().split()


def test_names_cannot_become_markup(table, tmp_path):
    table = table.copy()
    table.replace_column("name", np.full(400, "<script>alert('&amp;')</script>"))
    table.replace_column("reason", np.full(400, '"><img src="http://x.org/a.png">'))
    page, _ = make_page(table, tmp_path)
    assert not page.find("script") and len(page.find("img")) == 4
    assert page.column("Stars of largest χ²/dof", "name")[0] == "<script>alert('&amp;')</script>"


def test_parquet_gives_the_same_page(table, tmp_path):
    (tmp_path / "fits").mkdir()
    one, _ = make_page(table, tmp_path / "fits")
    other, _ = make_page(table, tmp_path, ".parquet")
    assert one.tables == other.tables and one.find("img") == other.find("img")
    assert other.text == one.text.replace("catalog.fits", "catalog.parquet")
    empty, _ = make_page(table[:0], tmp_path, ".parquet")
    assert "no such star to draw" in empty.text


def test_very_many_stars_make_no_larger_a_page(tmp_path):
    page, written = make_page(fake_catalog(60_000), tmp_path)
    assert written.path.stat().st_size < 2e6 and written.stars == 60_000
    assert sum(map(len, page.column("Median error by S/N a pixel", "stars"))) > 8
    assert "60,000 rows" in page.text


def cut(table, change):
    """A catalogue with less to show."""
    table = table.copy()
    if change == "no star":
        return table[:0]
    if change == "none fitted":
        return table[:7]
    if change == "none good":
        table["result_flags"][7:] |= int(Flag.NOT_CONVERGED)
        return table
    if change == "one star":
        return table[10:11]
    if change == "two alike":
        table["snr"] = 50.0
        return table[[10, 10]]
    if change == "no repeats":
        return table[:100]
    if change == "nothing free":
        for name in table.colnames:
            if name.startswith("e_"):
                table[name] = np.nan
        return table
    table.remove_columns(change.split())
    return table


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ("no star", ["no such star to draw", "There are no stars", "No star has a flag"]),
        ("none fitted", ["no such star to draw", "no star with an S/N", "none was fitted"]),
        ("none good", ["0 stars that no flag forbids", "No star was observed twice"]),
        ("one star", ["1 star that no flag", "Every star has a result", "No star was observed"]),
        ("two alike", ["1 pair of usable rows", "2 stars that no flag"]),
        ("no repeats", ["No star was observed twice"]),
        ("nothing free", ["no star with an S/N and errors", "No star was observed twice"]),
        ("logg", ["Not shown: the catalogue has no column logg."]),
        ("fe_h", ["Not shown: the catalogue has no column fe_h."]),
        ("snr", ["Not shown: the catalogue has no column snr."]),
        ("p_value chi2", ["no column chi2, p_value.", "the catalogue has no column chi2."]),
        ("result_flags", ["Not shown: the catalogue has no column result_flags."]),
        ("reason", ["7 stars failed; the catalogue has no column reason."]),
        ("name", ["Not shown: the catalogue has no column name."]),
        ("source row", ["The 6 of largest"]),
        ("e_teff_stat e_teff_sys", ["191 pairs"]),
    ],
)  # fmt: skip
def test_what_a_catalogue_cannot_show_a_sentence_says(table, tmp_path, change, sentences):
    page, _ = make_page(cut(table, change), tmp_path)
    for sentence in sentences:
        assert sentence in page.text
    assert len(page.find("h2")) >= 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.fits", "no such file"),
        ("text.fits", "not a FITS file"),
        ("text.parquet", "not a Parquet file"),
        ("other.fits", "not a catalogue: its header's CREATOR is 'not there'"),
        ("other.parquet", "not a catalogue"),
        ("image.fits", "its first extension is no table"),
        ("text.csv", r"\.fits or \.parquet"),
    ],
)
def test_what_is_no_catalogue_is_one_error(tmp_path, name, message):
    from astropy.io import fits

    for suffix in ("fits", "parquet", "csv"):
        (tmp_path / f"text.{suffix}").write_text("no catalogue\n" * 400)
        if suffix != "csv":
            write_catalog(Table({"teff": [5000.0]}), tmp_path / f"other.{suffix}")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(InputError, match=message):
        sf.write_quality_page(tmp_path / name, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_command_line(table, tmp_path, capsys):
    catalog = write_catalog(table, tmp_path / "catalog.fits")
    assert main(["report", str(catalog), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"path": str(tmp_path / "catalog.html"), "stars": 400, "usable": 389,
                     "flagged": 4, "failed": 7}  # fmt: skip
    assert Page(tmp_path / "catalog.html").tables
    before = catalog.read_bytes()
    assert main(["report", str(catalog), "--out", str(catalog)]) == 2
    assert "ends in .html" in capsys.readouterr().err and catalog.read_bytes() == before
    assert main(["report", str(catalog), "--residuals"]) == 0  # its parts are not there
    assert (
        "Not shown: how the stars were fitted is not known" in Page(tmp_path / "catalog.html").text
    )


def test_residuals_are_those_of_the_same_fits(tmp_path):
    emulator = tiny_emulator(analytic=True)
    for i in range(2):
        star = fake_star(seed=i)
        flux = star.flux + (40.0 if i else 0.0) * (np.arange(len(star)) % 50 == 0)
        columns = {"wave": star.wavelength, "flux": flux, "ivar": star.ivar}
        Table(columns, meta={"OBJECT": f"star {i}"}).write(tmp_path / f"star{i}.fits")
    out = tmp_path / "catalog.fits"
    sf.fit_survey(str(tmp_path / "star*.fits"), emulator, out=out, medium="vacuum",
                  resolution=47_000, robust=False, progress=False)  # fmt: skip
    chi2 = read_catalog(out)["chi2"]
    assert chi2[1] > 2 * chi2[0]
    with pytest.raises(InputError, match=r"emulator: the survey's, .* is not shipped.*--emulator"):
        sf.write_quality_page(out, residuals=True)
    with pytest.raises(InputError, match=r"residuals need that of the survey.*--emulator"):
        sf.write_quality_page(out, residuals=True, emulator=tiny_emulator(depth=1))
    assert not (tmp_path / "catalog.html").exists()
    (tmp_path / "star0.fits").write_text("damaged")
    page = Page(sf.write_quality_page(out, residuals=True, emulator=emulator).path)
    assert f"{tmp_path / 'star0.fits'} cannot be fitted again: " in page.text
    alts = [one["alt"] or "" for one in page.find("img")]
    assert sum(f"residuals of star 1 ({tmp_path / 'star1.fits'})" in alt for alt in alts) == 1
    ((name, again, before, pixels, beyond, largest),) = page.tables["Fits made again"][1:]
    assert (name, again, before) == ("star 1", f"{chi2[1]:.6g}", f"{chi2[1]:.6g}")
    assert int(pixels) == read_catalog(out)["num_pixels"][1]
    assert int(beyond) >= 5 and float(largest) > 5
    assert page.column("How its stars were read and fitted", "option")[0] == "emulator"


@pytest.fixture
def browser():
    """A headless Chromium of this machine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_a_browser_shows_it_all_and_asks_for_nothing(browser, table, tmp_path, width, height):
    _, written = make_page(table, tmp_path)
    context = browser.new_context(viewport={"width": width, "height": height})
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.path.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [written.path.as_uri()]
    widths = tab.evaluate("[...document.images].map(one => one.complete && one.naturalWidth)")
    assert len(widths) == 4 and all(number > 500 for number in widths)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    shown = tab.evaluate("[...document.images].map(one => one.getBoundingClientRect().right)")
    assert max(shown) <= width
    # Every table that is too wide can be scrolled to its end, by keyboard too.
    hidden = tab.evaluate(
        "[...document.querySelectorAll('table')].filter(one => one.getBoundingClientRect().right "
        "> innerWidth && one.parentElement.tabIndex !== 0).length"
    )
    assert hidden == 0
