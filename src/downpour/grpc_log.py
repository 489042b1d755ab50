"""What gRPC logs by itself: Downpour says the same in its errors, with a way out."""

from __future__ import annotations

import os

import pyarrow.flight as fl

VERBOSITY = "GRPC_VERBOSITY"


def silence() -> None:
    """Let the gRPC of pyarrow log nothing, unless the environment says how much it is to log.

    It reads the variable when it starts, which this makes it do; other gRPCs of the process do not
    see it.
    """
    if VERBOSITY in os.environ or "GRPC_TRACE" in os.environ:
        return
    os.environ[VERBOSITY] = "NONE"
    try:
        fl.FlightClient("grpc+tcp://127.0.0.1:1").close()
    finally:
        del os.environ[VERBOSITY]
