"""MCAP bags: written from raw CDR bytes with embedded definitions, readable after kill -9.

The format is that of rosbag2's MCAP storage (profile ros2, schemas ros2msg, encoding cdr). The recorder's
facts (robot description, versions, namespace) lie in a metadata record at the beginning of every file.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import zstandard
from mcap.exceptions import InvalidMagic, McapError
from mcap.records import Channel, Chunk, Message, Metadata, Schema
from mcap.stream_reader import CRCValidationError, StreamReader, breakup_chunk
from mcap.writer import CompressionType, Writer
from mcap_ros2.decoder import DecoderFactory

from valueguide.disk import flush as flush_folder
from valueguide.errors import DataError, mismatch
from valueguide.ros.definitions import definition

#: Name of the metadata record with the recorder's facts.
FACTS = "valueguide"
#: What was received this long ago is in the hands of the operating system, so that kill -9 cannot lose it.
FLUSH_S = 0.5
_CHUNK_BYTES = 1024 * 1024
_BROKEN = (McapError, struct.error, zstandard.ZstdError, RuntimeError, ValueError, EOFError, zlib.error)


class BagWriter:
    """Writes `<folder>/<session>_0000.mcap`, `_0001` …; use from one thread.

    facts: texts for the metadata record of every file. split_bytes, split_s: begin a new file beyond these
    (0: never). After `flush_s` without a flush, the next `write` or `tick` hands everything to the
    operating system. Raises DataError naming the file and the cause; nothing more can be written then.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, str],
        *,
        session: str = "",
        split_bytes: int = 0,
        split_s: float = 0.0,
        flush_s: float = FLUSH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.session = session or f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() // 10**6 % 1000:03d}"
        self.messages = 0
        self._facts = {**facts, "session": self.session}
        self._split_bytes, self._split_ns = split_bytes, round(split_s * 1e9)
        self._flush_s, self._clock = flush_s, clock
        self._number = 0
        self._closed = False
        self._guarded(self._open)

    @property
    def path(self) -> Path:
        """The file being written."""
        return self.folder / f"{self.session}_{self._number:04d}.mcap"

    def write(
        self, topic: str, type_name: str, data: bytes, log_ns: int, publish_ns: int | None = None
    ) -> None:
        """One message. topic: in full. type_name: package/msg/Name. data: CDR. log_ns: when received."""
        published = log_ns if publish_ns is None else publish_ns
        self._guarded(lambda: self._write(topic, type_name, data, log_ns, published))

    def add_facts(self, name: str, facts: Mapping[str, str]) -> None:
        """A metadata record of this name at this place."""
        self._guarded(lambda: self._writer.add_metadata(name, dict(facts)))

    def tick(self) -> None:
        """Flush when it is due; call a few times a second while nothing is written."""
        if not self._closed and self._clock() - self._flushed_at >= self._flush_s:
            self._guarded(self._flush)

    def close(self) -> None:
        """Finish the file with its index. Raises DataError when that fails; the messages before are kept."""
        if not self._closed:
            self._guarded(self._finish)
            self._closed = True

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(self.path, "xb")  # noqa: SIM115 (open from here to close)
        self._writer = Writer(self._file, chunk_size=_CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="valueguide")
        self._writer.add_metadata(FACTS, self._facts)
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._first_ns: int | None = None
        self._flush()

    def _write(self, topic: str, type_name: str, data: bytes, log_ns: int, publish_ns: int) -> None:
        if self._full(log_ns):
            self._finish()
            self._number += 1
            self._open()
        if topic not in self._channels:
            if type_name not in self._schemas:
                text = definition(type_name).encode()
                self._schemas[type_name] = self._writer.register_schema(type_name, "ros2msg", text)
            self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[type_name])
        self._first_ns = log_ns if self._first_ns is None else self._first_ns
        self._writer.add_message(self._channels[topic], log_ns, data, publish_ns)
        self.messages += 1
        if self._clock() - self._flushed_at >= self._flush_s:
            self._flush()

    def _full(self, log_ns: int) -> bool:
        if self._first_ns is None:
            return False
        long = bool(self._split_ns) and log_ns - self._first_ns >= self._split_ns
        return long or bool(self._split_bytes) and self._file.tell() >= self._split_bytes

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed_at = self._clock()

    def _finish(self) -> None:
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        flush_folder(self.folder)

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._closed:
            raise DataError(f"{self.path}: the bag is closed")
        try:
            work()
        except OSError as error:
            self._closed = True
            self._abandon()
            raise DataError(f"{self.path}: bag not written: {error}. What came before is readable") from error

    def _abandon(self) -> None:
        # Closing the buffered file would try to write its rest once more, and fail once more.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._file.raw.close()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class BagMessage:
    """topic: in full. data: CDR bytes. log_ns: when it was received, nanoseconds."""

    topic: str
    schema: Schema
    data: bytes
    log_ns: int

    @property
    def type(self) -> str:
        return self.schema.name


@dataclass
class BagReader:
    """Messages of a bag in the order in which they were recorded; decoding is up to the caller.

    paths: its files in order. facts: of the recorder, empty for bags of others. While and after reading:
    `position`, bytes read; `records` of other metadata by name; `truncated` files, cut off by a crash.
    """

    paths: list[Path]
    facts: dict[str, str] = field(default_factory=dict)
    position: int = 0
    records: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    truncated: list[Path] = field(default_factory=list)
    _decoders: dict[tuple[str, bytes], Callable[[bytes], Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> BagReader:
        """A file, or a folder of .mcap files. Raises DataError when there is none."""
        path = Path(path)
        files = sorted(path.glob("*.mcap")) if path.is_dir() else [path] if path.exists() else []
        if not files:
            raise DataError(mismatch(str(path), "bag", "a .mcap file or a folder with some", "none"))
        return cls(files)

    def sessions(self) -> list[BagReader]:
        """One reader for the files of each recording, since clocks and episodes start anew in the next.

        Of recorders that leave no facts, all files belong together.
        """
        groups: dict[str, BagReader] = {}
        for path in self.paths:
            facts = _read_facts(path)
            groups.setdefault(facts.get("session", ""), BagReader([], facts)).paths.append(path)
        return list(groups.values())

    def topics(self) -> list[str]:
        """Full names of all topics; reads the files."""
        names: dict[str, None] = {}
        for path in self.paths:
            names |= {record.topic: None for record in self._records(path) if isinstance(record, Channel)}
        self.position = 0
        self.truncated.clear()
        return list(names)

    def __iter__(self) -> Iterator[BagMessage]:
        for path in self.paths:
            yield from self._messages(path)

    def decode(self, message: BagMessage) -> Any:
        """The message as an object with the attributes of the ROS message. Raises DataError."""
        key = (message.schema.name, message.schema.data)
        try:
            if key not in self._decoders:
                decoder = DecoderFactory().decoder_for("cdr", message.schema)
                if decoder is None:
                    raise ValueError(f"schema encoding: expected ros2msg, found {message.schema.encoding!r}")
                self._decoders[key] = decoder
            return self._decoders[key](message.data)
        except (*_BROKEN, NotImplementedError, IndexError) as error:
            raise DataError(f"{message.topic}: a {message.type} that cannot be decoded: {error}") from error

    def _messages(self, path: Path) -> Iterator[BagMessage]:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        for record in self._records(path):
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Metadata):
                self._note(record)
            elif isinstance(record, Message):
                channel = channels.get(record.channel_id)
                if channel is None or channel.schema_id not in schemas:
                    raise DataError(f"{path}: damaged: a message of the unknown channel {record.channel_id}")
                yield BagMessage(channel.topic, schemas[channel.schema_id], record.data, record.log_time)

    def _records(self, path: Path) -> Iterator[Any]:
        """Records up to the end, or up to where a crash cut the file off."""
        try:
            with open(path, "rb") as file:
                before = self.position
                # Without checks of its own and without an index, so that an unfinished file reads as well.
                records = iter(StreamReader(file, emit_chunks=True, validate_crcs=False).records)
                while True:
                    try:
                        record = next(records, None)
                        if record is None:
                            return
                        inner = [record]
                        if isinstance(record, Chunk):
                            inner = breakup_chunk(record, validate_crc=True)
                    except InvalidMagic as error:
                        raise DataError(f"{path}: expected an MCAP file, found something else") from error
                    except (*_BROKEN, CRCValidationError, MemoryError) as error:
                        if not file.read(1):
                            self.truncated.append(path)
                            return
                        place = file.tell()
                        raise DataError(f"{path}: damaged before byte {place}: {error}") from error
                    self.position = before + file.tell()
                    yield from inner
        except OSError as error:
            raise DataError(f"{path}: not readable: {error}") from error

    def _note(self, record: Metadata) -> None:
        if record.name != FACTS:
            self.records.setdefault(record.name, []).append(record.metadata)


def _read_facts(path: Path) -> dict[str, str]:
    """The recorder's facts at the beginning of one file; empty for bags of other recorders."""
    for record in BagReader([path])._records(path):
        if isinstance(record, Metadata) and record.name == FACTS:
            return dict(record.metadata)
        if isinstance(record, Message):
            break
    return {}
