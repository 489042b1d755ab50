"""Errors name the options that were typed, and come before anything has begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from downpour.cli import main
from downpour.serving.flight_server import FlightServer
from downpour.serving.service import Service
from tests.certificates import make_authority

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
RUN = f"train {HERE}/cluster_run.py --out never"
CLUSTER = f"{RUN} --servers 1"
WORKER = f"worker {HERE}/cluster_run.py --servers a:1 --rank 0 --workers 1"
FEDERATED = f"federated {HERE}/federations.py:evaluated --out never"
CLIENT = f"client {HERE}/federations.py:evaluated --servers a:1 --client 0"
SECONDS = "must be seconds > 0, got"

WRONG = {
    f"{RUN} --epochs 0": "--epochs must be an int >= 1, got 0",
    f"{RUN} --seed -1": "--seed must be an int >= 0, got -1",
    f"{RUN} --servers 0": "--servers must be an int >= 1, got 0",
    f"{CLUSTER} --workers 0": "--workers must be an int >= 1, got 0",
    f"{CLUSTER} --deadline 0": f"--deadline {SECONDS} 0.0",
    f"{CLUSTER} --start -1": f"--start {SECONDS} -1.0",
    f"{CLUSTER} --worker-timeout nan": f"--worker-timeout {SECONDS} nan",
    f"{CLUSTER} --min-section 0": "--min-section must be an int >= 1, got 0",
    f"{CLUSTER} --metrics-port 65536": "'--metrics-port': 65536 is not in the range",
    f"{RUN} --connect here": "--connect: a server's address must be HOST:PORT",
    f"{RUN} --connect a:1,a:1": "--connect must be different, got ('a:1', 'a:1')",
    f"{RUN} --connect=": "--connect: a server's address must be HOST:PORT",
    f"{CLUSTER} --tls-key {__file__}": "--tls-certificate and --tls-key come together",
    f"{CLUSTER} --tls-authority {__file__}": f"--tls-authority {__file__} must be PEM",
    f"{CLUSTER} --tls-authority none.pem": "--tls-authority: there is no file none.pem",
    f"{CLUSTER} --token-file short": "the token of --token-file must have at least 16 characters",
    f"{WORKER} --servers here": "--servers: a server's address must be HOST:PORT",
    f"{WORKER} --workers 0": "--workers must be an int >= 1, got 0",
    f"{WORKER} --rank 1": "--rank must be from 0 to 0, as there are 1 --workers, got 1",
    f"{WORKER} --epochs 0": "--epochs must be an int >= 1, got 0",
    f"{WORKER} --worker-timeout 0": f"--worker-timeout {SECONDS} 0.0",
    f"{FEDERATED} --clients 0": "--clients must be an int >= 1, got 0",
    f"{FEDERATED} --client-timeout 0": f"--client-timeout {SECONDS} 0.0",
    f"{CLIENT} --client 3": "--client must be from 0 to 2, as a federation of 3 clients has them",
    f"{CLIENT} --servers here": "--servers: a server's address must be HOST:PORT",
    "server --port -1": "'--port': -1 is not in the range",
    "server --max-message-mb 0": "'--max-message-mb': 0 is not in the range",
    "server --host 192.0.2.1": "give it a --token-file",
    "predict never data.csv --out scores.parquet --batch-size 0": "'--batch-size': 0 is not in",
    "eval never data.csv --batch-size -1": "'--batch-size': -1 is not in the range",
}
SETTINGS = ("Cluster.", "Sections.", "Security.", "Run.", "Federation.", "MetricsServer")


@pytest.mark.parametrize("words", WRONG)
def test_an_error_names_the_option(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("secret")
    done = CliRunner().invoke(main, words.split())
    assert done.exit_code in (1, 2)
    assert WRONG[words] in done.stderr
    assert not [it for it in SETTINGS if it in done.stderr]
    assert "Traceback" not in done.output
    assert [it.name for it in tmp_path.iterdir()] == ["short"]  # nothing has begun


def test_a_setting_of_the_run_itself_is_not_an_option(tmp_path: Path) -> None:
    (tmp_path / "wrong_epochs.py").write_text(
        "from tests.small_runs import small_run\ndef run():\n    return small_run(epochs=0)\n"
    )
    done = CliRunner().invoke(main, ["train", str(tmp_path / "wrong_epochs.py"), "--seed", "1"])
    assert done.exit_code == 1
    assert "Run.epochs must be an int >= 1, got 0" in done.stderr


# What gRPC says by itself.


def said_by(arguments: list[str]) -> str:
    """What a command that fails writes on standard error."""
    command = [sys.executable, "-m", "downpour", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture
def certificates(tmp_path: Path) -> Mapping[str, Path]:
    authority = make_authority(tmp_path)
    own = authority.sign("server")
    assert own.certificate is not None
    assert own.key is not None
    own.key.chmod(0o600)
    return {"certificate": own.certificate, "key": own.key, "authority": authority.file}


def test_nothing_but_the_error_reaches_the_terminal(certificates: Mapping[str, Path]) -> None:
    server = FlightServer(Service())
    try:
        worker = ["worker", f"{HERE}/cluster_run.py", "--rank", "0", "--workers", "1"]
        asked = ["--servers", f"127.0.0.1:{server.port}", "--start", "2"]
        secured = ["--tls-authority", str(certificates["authority"])]
        (line,) = said_by([*worker, *asked, *secured]).splitlines()
        assert "it speaks no TLS: start it with --tls-certificate and --tls-key" in line
        (line,) = said_by(["server", "--port", str(server.port)]).splitlines()
        assert line.startswith(f"Error: a server cannot listen at 127.0.0.1:{server.port}")
    finally:
        server.end()
