"""`valueguide serve` in a process of its own, for tests: real models, a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from typing import Any


class Serve:
    """The command in a process of its own, once it serves."""

    def __init__(self, critic: str, *options: str, port: str = "*") -> None:
        line = [sys.executable, "-m", "valueguide.cli.main", "serve", "--critic", critic, "--threads", "1"]
        line += ["--bind", f"tcp://127.0.0.1:{port}", "--status-port", "0", "--device", "cpu", "--json", "-"]
        self.process = subprocess.Popen(
            [*line, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        try:
            self._wait()
        except BaseException:  # a Ctrl-C too: nobody else knows of it yet
            self.process.kill()
            self.process.communicate()
            raise
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or []), daemon=True).start()

    def _wait(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(text)
            found = re.search(r"at (tcp://\S+); (http://\S+)/health", text)
            if found:
                self.endpoint, self.page = found[1], found[2]
                break
        else:
            raise AssertionError("".join(self.lines))

    def read(self, path: str) -> str:
        return str(urllib.request.urlopen(f"{self.page}{path}").read().decode())

    def end(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, "".join(self.lines)
        return dict(json.loads(out))
