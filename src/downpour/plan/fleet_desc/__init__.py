"""The reference's description of servers and trainers (PSParameter), from a plan and back.

Messages and their text are protobuf's, which is not loaded before a description is made or read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from downpour.plan.fleet_desc.described import (
    DenseTableDesc,
    FleetDesc,
    SparseTableDesc,
    TrainerDesc,
)
from downpour.plan.fleet_desc.description import decode, encode, read_file
from downpour.plan.fleet_desc.extensions import encode_for_paddle, extension_lines
from downpour.plan.fleet_desc.strategies import (
    data_norm_of_strategy,
    dense_of_strategy,
    sparse_of_strategy,
)

if TYPE_CHECKING:
    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter as PSParameter

__all__ = [
    "DenseTableDesc",
    "FleetDesc",
    "SparseTableDesc",
    "TrainerDesc",
    "data_norm_of_strategy",
    "decode",
    "dense_of_strategy",
    "encode",
    "encode_for_paddle",
    "extension_lines",
    "read_file",
    "sparse_of_strategy",
]
