"""The other end of `train_step_peer`: start engines in their own processes and talk to them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
TORCHREC_PYTHON = ROOT / ".venv-torchrec" / "bin" / "python"
SETUP_TIMEOUT_S, STEP_TIMEOUT_S = 300.0, 60.0


class PeerError(RuntimeError):
    """A peer could not start, died or fell silent."""


class Peer:
    """One engine's process; it works only while `run` waits for it."""

    def __init__(self, name: str, python: Path, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '_')}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, "-m", "benchmarks.train_step_peer", name, folder],
                cwd=ROOT,
                env=os.environ | {"PYTHONWARNINGS": "ignore"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        self._unread = b""
        try:
            self._read(SETUP_TIMEOUT_S)
        except PeerError:
            self.close()
            raise

    def run(self, steps: int) -> dict[str, Any]:
        """Train so many steps; seconds and loss of each, and what the engine says of itself."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps}).encode() + b"\n")
        return self._read(SETUP_TIMEOUT_S + STEP_TIMEOUT_S * steps)

    def close(self) -> None:
        """End the process by ending its input, and kill it if that is not enough."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        """Read one line of JSON."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise PeerError(f"{self.name}: silent for {timeout_s:.0f} s")
            piece = self.process.stdout.read(1 << 16)
            if not piece:
                self.process.wait()
                raise PeerError(f"{self.name}: {self._last_words()}")
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = self.log.read_text().strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.returncode}"


def start_peers(names: Sequence[str], folder: Path) -> tuple[list[Peer], dict[str, str]]:
    """Start the engines one after the other; TorchRec's may be left out, with the reason.

    Raises PeerError, naming the engine, if one of the others cannot start.
    """
    peers: list[Peer] = []
    left_out = {}
    for name in names:
        is_torchrec = name.startswith("torchrec")
        if is_torchrec and not TORCHREC_PYTHON.exists():
            left_out[name] = "no environment: make it with `python -m benchmarks.torchrec_env`"
            continue
        try:
            peers.append(
                Peer(name, TORCHREC_PYTHON if is_torchrec else Path(sys.executable), folder)
            )
        except PeerError as error:
            if not is_torchrec:
                for peer in peers:
                    peer.close()
                raise
            left_out[name] = str(error)
        print(f"train_step: {name}: {left_out.get(name, 'ready')}", file=sys.stderr, flush=True)
    return peers, left_out
