"""How tables are written and where servers listen, as messages: kept for the description alone."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from downpour.plan.specs import FsClient, Service, TableFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.plan.fleet_desc.fleet_desc_pb2 import (
        FsClientParameter,
        ServerServiceParameter,
        TableParameter,
    )
    from downpour.plan.fleet_desc.places import Node

# What the settings of TableFiles are called in a message.
FIELDS = {
    "shard_num": "shard_num",
    "compress": "compress_in_save",
    "cache": "enable_sparse_table_cache",
    "cache_rate": "sparse_table_cache_rate",
    "cache_file_num": "sparse_table_cache_file_num",
}
# Of pslib first, then of the_one_ps in its versions.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "server_class": ("DownpourBrpcPsServer", "BrpcPsServer"),
    "client_class": ("DownpourBrpcPsClient", "BrpcPsClient"),
    "service_class": ("DownpourPsService", "BrpcPsService", "PsService"),
}


def write_files(message: TableParameter, files: TableFiles) -> None:
    """Write them into a table and its accessor."""
    for setting, name in FIELDS.items():
        setattr(message, name, getattr(files, setting))
    for param, converter, deconverter in files.converters:
        message.accessor.table_accessor_save_param.add(
            param=param, converter=converter, deconverter=deconverter
        )


def read_files(node: Node) -> TableFiles:
    """Read those of a table. Raises PlanError."""
    if node.has("shared_num") and node.has("shard_num"):
        raise node.error("shared_num", "is the first version's name of shard_num; keep one")
    return node.made(_files)


def _files(node: Node) -> TableFiles:
    settings = {setting: node.get(name) for setting, name in FIELDS.items()}
    if node.has("shared_num"):
        settings["shard_num"] = node.get("shared_num")
    converters = tuple(
        (it.get("param"), it.get("converter"), it.get("deconverter"))
        for it in node.child("accessor").children("table_accessor_save_param")
    )
    return TableFiles(**settings, converters=converters)


def write_service(message: ServerServiceParameter, service: Service) -> None:
    """Write where servers listen, and the classes that the reference always names."""
    for name, (own, *_) in CLASSES.items():
        setattr(message, name, own)
    message.start_server_port = service.start_server_port
    message.server_thread_num = service.server_thread_num


def read_service(node: Node) -> Service:
    """Read where servers listen. Raises PlanError for a class that is not the reference's own."""
    for name, known in CLASSES.items():
        if node.get(name) not in known:
            raise node.error(name, f"must be one of {', '.join(known)}, got {node.get(name)!r}")
    names = [field.name for field in fields(Service)]
    return node.made(lambda it: Service(**{name: it.get(name) for name in names}))


def write_fs_client(message: FsClientParameter, client: FsClient) -> None:
    """Write what is not the default."""
    given = {name: getattr(client, name) for name in _fs_names()}
    set_ones = {name: value for name, value in given.items() if value}
    message.MergeFrom(type(message)(fs_type=client.fs_type, **set_ones))


def read_fs_client(node: Node) -> FsClient:
    """Read the file system. Raises PlanError."""
    types = node.message.DESCRIPTOR.fields_by_name["fs_type"].enum_type
    fs_type = types.values_by_number[node.get("fs_type")].name
    settings = {name: node.get(name) for name in _fs_names()}
    return FsClient(fs_type=fs_type, **settings)


def _fs_names() -> list[str]:
    return [field.name for field in fields(FsClient) if field.name != "fs_type"]
