"""The folder of a survey's parts: what was asked for, which stars, and the rows that are there.

Beside ``catalog.fits`` lies ``catalog.fits.parts`` with

- ``manifest.json``: everything that decides the rows, so that no other run is mixed in;
- ``stars.parquet``: files and rows of all stars in order, a row group a part;
- ``part-00012.parquet``: the catalogue's rows of one part. It is there, whole, or it is not: the
  whole state of a survey is which of these exist;
- ``emulator.h5``: for the workers of a cluster.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from emulators.errors import InputError
from emulators.storage import atomic_write

from .catalog import ascii_text
from .sources import Source

_STARS = pyarrow.schema([("path", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
                         ("row", pyarrow.int64())])  # fmt: skip


class SurveyFolder:
    """Holds no open file, so that it can be sent to other processes.

    Parameters
    ----------
    out : path
        Of the catalogue.
    """

    def __init__(self, out: Path):
        self.out = Path(out).absolute()
        self.path = self.out.with_name(f"{self.out.name}.parts")

    def begin(
        self,
        config: Mapping[str, Any],
        header: Mapping[str, Any],
        labels: Sequence[str],
        stars: Iterable[Source],
        *,
        resume: bool,
    ) -> None:
        """Write down what is asked for, or find that it is what the folder was begun with.

        Parameters
        ----------
        config
            By key, everything that decides the rows, as JSON has it; ``part_size`` among it.
        header
            Of the catalogue.
        labels
            Of the emulator.
        stars
            Listed where the folder is new.
        resume
            Go on with a folder that was begun.

        Raises
        ------
        InputError
            A used folder without `resume`, a catalogue without a folder, another configuration.
        """
        asked: dict[str, Any] = json.loads(json.dumps(config))
        if self._manifest_path.exists():
            if not resume:
                raise InputError(
                    f"{self.path}: a survey was begun there; go on with it by resume=True "
                    "(--resume), or remove the folder"
                )
            self._check(asked)
            return
        if self.out.exists():
            raise InputError(f"{self.out}: the file exists; give another name, or remove it")
        with self._writes():
            self.path.mkdir(parents=True, exist_ok=True)
            num = self._write_stars(stars, asked["part_size"])
            manifest = {"config": asked, "header": header, "labels": labels, "stars": num}
            with atomic_write(self._manifest_path) as temporary:
                temporary.write_text(json.dumps(manifest, indent=1))

    @property
    def _manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def emulator(self) -> Path:
        """Where workers find the emulator."""
        return self.path / "emulator.h5"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """``config``, ``header``, ``labels`` and the number of ``stars``."""
        if not self._manifest_path.exists():
            raise InputError(f"{self.path}: no survey was begun there")
        return json.loads(self._manifest_path.read_text())

    @property
    def num_parts(self) -> int:
        """Parts of the whole survey."""
        return -(-self.manifest["stars"] // self.manifest["config"]["part_size"])

    def num_stars(self, part: int) -> int:
        """Stars of a part."""
        size = self.manifest["config"]["part_size"]
        return min(size, self.manifest["stars"] - part * size)

    def missing(self) -> list[int]:
        """Parts that are not there."""
        there = {path.name for path in self.path.iterdir()}
        return [part for part in range(self.num_parts) if self.part(part).name not in there]

    def part(self, part: int) -> Path:
        """The file of a part."""
        return self.path / f"part-{part:05d}.parquet"

    def stars(self, part: int) -> list[Source]:
        """The stars of a part, in order."""
        with pyarrow.parquet.ParquetFile(self.path / "stars.parquet") as file:
            group = file.read_row_group(part).to_pylist()
        return [Source(**star) for star in group]

    def write_part(
        self, part: int, rows: Sequence[dict[str, Any]], parameters: Sequence[str], failed: int
    ) -> None:
        """Write the rows of a part: whole, or not at all."""
        widths = {
            name: max(len(ascii_text(row[name])) for row in rows)
            for name, value in rows[0].items()
            if isinstance(value, str)
        }
        about = {"config": self._hash, "parameters": list(parameters), "failed": failed,
                 "widths": widths}  # fmt: skip
        table = pyarrow.table({name: [row[name] for row in rows] for name in rows[0]})
        table = table.replace_schema_metadata({"stellarfit": json.dumps(about)})
        with self._writes(), atomic_write(self.part(part)) as temporary:
            # In ten thousand small parts dictionaries and statistics are most of what is read.
            pyarrow.parquet.write_table(
                table, temporary, use_dictionary=False, write_statistics=False
            )

    def about(self, part: int) -> dict[str, Any]:
        """Of a part that is there: the ``parameters`` of its rows, how many ``failed``, ``widths``.

        ``widths`` are the numbers of characters of the longest text of each column, in FITS.

        Raises
        ------
        InputError
            It is damaged, or another configuration wrote it.
        """
        path = self.part(part)
        try:
            metadata = pyarrow.parquet.read_metadata(path)
            about = json.loads((metadata.metadata or {})[b"stellarfit"])
        except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it and go on") from None
        if about.get("config") != self._hash or metadata.num_rows != self.num_stars(part):
            raise InputError(f"{path}: of another survey; remove it and go on")
        return about

    def read_part(self, part: int) -> Any:
        """The rows of a part, as a pyarrow Table."""
        # A part is small: it is read at once, and threads would cost more than they save.
        whole = pyarrow.BufferReader(self.part(part).read_bytes())
        with pyarrow.parquet.ParquetFile(whole, pre_buffer=False) as file:
            return file.read(use_threads=False)

    @property
    def _hash(self) -> str:
        text = json.dumps(self.manifest["config"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _check(self, config: dict[str, Any]) -> None:
        begun = self.manifest["config"]
        for key in (*config, *begun):
            now, then = config.get(key), begun.get(key)
            if now != then:
                raise InputError(
                    f"{key}: {_text(now)} now, but {self.path} was begun with {_text(then)}; "
                    "give what it was begun with, or another out="
                )

    def _write_stars(self, stars: Iterable[Source], part_size: int) -> int:
        num, stars = 0, iter(stars)
        with (
            atomic_write(self.path / "stars.parquet") as temporary,
            pyarrow.parquet.ParquetWriter(temporary, _STARS) as writer,
        ):
            while group := list(islice(stars, part_size)):
                rows = pyarrow.Table.from_pylist([star._asdict() for star in group], _STARS)
                writer.write_table(rows, row_group_size=part_size)
                num += len(group)
        return num

    @contextmanager
    def _writes(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write there: {error}; what is done is kept: once there is "
                "room, go on by resume=True (--resume)"
            ) from error


def _text(value: Any) -> str:
    return "the default" if value is None else json.dumps(value)
