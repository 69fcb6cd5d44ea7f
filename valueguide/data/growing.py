"""The episodes of a dataset that someone still records into, read file by file as they are committed."""

from __future__ import annotations

import logging
from pathlib import Path

from valueguide.data import layout
from valueguide.data.reader import EpisodeDataset
from valueguide.errors import DataError

log = logging.getLogger("valueguide.data")
#: Of a file: inode, modification time in ns, bytes. Files are replaced, so equal stamps mean equal content.
Stamp = tuple[int, int, int]


class GrowingDataset:
    """The dataset in the folder `root`, which need not exist yet.

    damaged: data file -> what is wrong with it, one line. It is tried again whenever the dataset grows.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()
        self.damaged: dict[Path, str] = {}
        self._info: Stamp | None = None
        self._seen: dict[Path, Stamp] = {}

    def look(self) -> list[EpisodeDataset]:
        """What was committed since the last call, as datasets of one or more data files.

        Costs one `stat` when nothing has changed. Episodes come again when their file was written anew, as
        by `compact`, or by a recorder that adds to it. Raises DataError when `meta/info.json` is damaged;
        a damaged file is left out and the others are returned.
        """
        info = _stamp(self.root / layout.INFO)
        if info is None or info == self._info:
            return []
        if not layout.read_json(self.root / layout.INFO).get("total_episodes"):
            return []  # Nothing is committed yet.
        files = layout.existing(self.root, layout.DATA_TEMPLATE)
        stamps = {number: _stamp(path) for number, path in files.items()}
        new = [n for n, path in files.items() if stamps[n] is not None and self._seen.get(path) != stamps[n]]
        self.damaged = {}
        parts = self._open(new, files)
        for part in parts:
            for number in new:
                if files[number] in part.data_files:
                    self._seen[files[number]] = stamps[number]  # type: ignore[assignment]
        self._info = info
        return parts

    def _open(self, numbers: list[int], files: dict[int, Path]) -> list[EpisodeDataset]:
        """All in one where none is damaged; halves, and halves of halves, where one is."""
        if not numbers:
            return []
        try:
            return [EpisodeDataset.open(self.root, only=set(numbers))]
        except (DataError, ValueError, LookupError, TypeError) as error:
            if len(numbers) == 1:
                self._refuse(files[numbers[0]], error)
                return []
        middle = len(numbers) // 2
        return self._open(numbers[:middle], files) + self._open(numbers[middle:], files)

    def _refuse(self, path: Path, error: Exception) -> None:
        if self._is_not_committed(path):
            return
        self.damaged[path] = " ".join(str(error).split())
        log.warning("left out: %s", self.damaged[path])

    def _is_not_committed(self, path: Path) -> bool:
        """A recorder that died may have left a whole file beyond what info.json counts."""
        try:
            index = layout.read_parquet(path, ["episode_index"])["episode_index"].to_numpy()
            return bool(index.min() >= layout.read_json(self.root / layout.INFO)["total_episodes"])
        except (DataError, ValueError, LookupError):
            return False


def _stamp(path: Path) -> Stamp | None:
    """None without such a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
