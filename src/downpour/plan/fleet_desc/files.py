"""What only the reference reads, as messages: of tables' files, of servers and of processes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from downpour.plan.specs import FsClient, Launch, Service, TableFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

    from downpour.plan.fleet_desc.fleet_desc_pb2 import (
        FsClientParameter,
        PSParameter,
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
    "mem_cache_rate": "sparse_table_mem_cache_rate",
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
        value = getattr(files, setting)
        if setting != "mem_cache_rate" or value != TableFiles().mem_cache_rate:  # of late versions
            setattr(message, name, value)
    message.table_class = files.table_class or message.table_class
    for param, converter, deconverter in files.converters:
        message.accessor.table_accessor_save_param.add(
            param=param, converter=converter, deconverter=deconverter
        )


def read_files(node: Node, table_class: str) -> TableFiles:
    """Read those of a table; `table_class` is the one it would have here. Raises PlanError."""
    if node.has("shared_num") and node.has("shard_num"):
        raise node.error("shared_num", "is the first version's name of shard_num; keep one")
    read, files = node.get("table_class"), node.made(_files)
    return files if read == table_class else replace(files, table_class=read)


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
        setattr(message, name, getattr(service, name) or own)
    message.start_server_port = service.start_server_port
    message.server_thread_num = service.server_thread_num


def read_service(node: Node) -> Service:
    """Read where servers listen. Raises PlanError for a class that is not the reference's own."""
    classes: dict[str, Any] = {}
    for name, known in CLASSES.items():
        read = node.get(name)
        if read not in known:
            why = f"must be one of {', '.join(known)}, got {read!r}; take it out for the first"
            raise node.error(name, why)
        classes[name] = "" if read == known[0] else read
    names = ("start_server_port", "server_thread_num")
    return node.made(lambda it: Service(**{name: it.get(name) for name in names}, **classes))


def write_launch(message: PSParameter, launch: Launch) -> None:
    """Write what is not the default."""
    for field in fields(Launch):
        if value := getattr(launch, field.name):
            setattr(message, field.name, value)


def read_launch(root: Node) -> Launch:
    """Read what processes are made of."""
    return Launch(**{field.name: root.get(field.name) for field in fields(Launch)})


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
