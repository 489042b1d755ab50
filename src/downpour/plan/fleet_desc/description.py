"""Descriptions: from a plan, from text, from a file, and what they say."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from downpour.errors import PlanError, SettingError
from downpour.local_path import local_path
from downpour.plan.fleet_desc.dense_tables import write_dense
from downpour.plan.fleet_desc.described import FleetDesc
from downpour.plan.fleet_desc.files import (
    read_fs_client,
    read_launch,
    read_service,
    write_fs_client,
    write_launch,
    write_service,
)
from downpour.plan.fleet_desc.places import Node, Place, Source
from downpour.plan.fleet_desc.programs import write_program
from downpour.plan.fleet_desc.sparse_tables import write_sparse
from downpour.plan.fleet_desc.tables import read_tables
from downpour.plan.fleet_desc.text import parse
from downpour.plan.fleet_desc.trainers import Tables, read_trainers
from downpour.plan.fleet_desc.values import CLIPS, read_value, write_value
from downpour.plan.specs import FsClient
from downpour.settings import first_unlike

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter
    from downpour.plan.plan import Plan
    from downpour.plan.program import Program

NAME = "fleet_desc"  # of what is no file


def encode(plan: Plan) -> PSParameter:
    """Say a plan as a message; see Plan.fleet_desc."""
    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter  # it loads protobuf

    message = PSParameter()
    server = message.server_param.downpour_server_param
    for table in plan.sparse:
        with _holding(f"table {table.name!r}"):
            write_sparse(server.downpour_table_param.add(), table)
    for block in plan.dense:
        with _holding(f"table {block.name!r}"):
            write_dense(server.downpour_table_param.add(), block)
    write_service(server.service_param, plan.service)
    write_launch(message, plan.launch)
    _write_trainers(message, plan)
    _check_whole(plan, decode(message))
    return message


@contextmanager
def _holding(what: str) -> Iterator[None]:
    """Say of what it is that protobuf has no room for a number or a text."""
    try:
        yield
    except PlanError:
        raise
    except (TypeError, ValueError) as error:  # of protobuf, which does not say the field
        if isinstance(error, UnicodeError):
            why = "a text with half a character"
        elif beyond := re.search(r"out of range: (.*)", str(error)):
            why = f"{beyond[1]} is out of range of its 64 bits"
        else:
            why = "it has a type that no field has"
        raise PlanError(f"{what}: a description cannot hold one of its settings: {why}") from error


def _write_trainers(message: PSParameter, plan: Plan) -> None:
    ids = plan.ids
    for program in plan.programs.values():
        with _holding(f"program {program.name!r}"):
            write_program(message.trainer_param.add(), program, ids)
    if plan.fs_client != FsClient():
        write_fs_client(message.fs_client_param, plan.fs_client)
    if plan.clip is not None:
        write_value(message.clip, plan.clip, CLIPS, "clip")


def _check_whole(plan: Plan, read: dict[str, Any]) -> None:
    """Refuse a plan that reads back as another: ops in some other order, sections with gaps."""
    own_parts: tuple[Any, ...] = (*plan.sparse, *plan.dense, *plan.programs.values())
    read_parts: tuple[Any, ...] = (*read["sparse"], *read["dense"], *read["programs"].values())
    for own, as_read in zip(own_parts, read_parts, strict=True):
        for field in fields(own):
            value, other = getattr(own, field.name), getattr(as_read, field.name)
            if value != other:
                value, other = first_unlike(value, other)
                raise PlanError(
                    f"{own.name!r}: a description cannot hold {field.name} {value!r}, it would be "
                    f"read as {other!r}; describe a plan as minimize makes it, or pickle this one"
                )


def decode(description: str | PSParameter) -> dict[str, Any]:
    """Read the arguments of Plan from what `encode` wrote, or its text; see Plan.from_fleet_desc.

    Raises PlanError.
    """
    desc = read_text(description) if isinstance(description, str) else _read_message(description)
    return {
        "sparse": tuple(desc.sparse[number].spec() for number in sorted(desc.sparse)),
        "dense": tuple(desc.dense[number].spec() for number in sorted(desc.dense)),
        "programs": _programs(desc),
        "clip": desc.clip,
        "service": desc.service,
        "fs_client": desc.fs_client or FsClient(),
        "launch": desc.launch,
    }


def _read_message(message: PSParameter) -> FleetDesc:
    from downpour.plan.fleet_desc.fleet_desc_pb2 import PSParameter  # it loads protobuf

    if not isinstance(message, PSParameter):
        raise PlanError(
            f"a plan is read from a PSParameter or its text, got {message!r}; Plan.fleet_desc "
            "makes one, and PSParameter.FromString reads its bytes"
        )
    return _describe(Node(message, Place(Source(NAME))))


def _programs(desc: FleetDesc) -> dict[str, Program]:
    programs: dict[str, Program] = {}
    for trainer in desc.trainers:
        program = trainer.program
        if program is None:
            raise PlanError(f"{trainer.where}: program_config is missing: what the program reads")
        if program.name in programs:
            raise PlanError(f"{trainer.where}: two programs are called {program.name!r}")
        programs[program.name] = program
    return programs


def read_text(text: str, source: str = NAME, *, are_all: bool = True) -> FleetDesc:
    """Read a description's text, of any version of pslib.

    `are_all`: trainers may use no tables but those of the description. Raises PlanError naming
    file, line and field of what is unknown, wrong or not supported.
    """
    return _describe(parse(text, source), are_all=are_all)


def read_file(path: str | Path) -> FleetDesc:
    """Read a description file, whose trainers may use tables that it leaves out.

    Raises PlanError, also where there is no file.
    """
    try:
        text = local_path(path, "fleet_desc_file").read_text(encoding="utf-8")
    except SettingError as error:
        raise PlanError(str(error)) from error
    except (OSError, ValueError) as error:  # text that is no UTF-8, a path that none can be
        raise PlanError(f"fleet_desc_file {str(path)!r} cannot be read: {error}") from error
    return read_text(text, str(path), are_all=False)


def _describe(root: Node, *, are_all: bool = True) -> FleetDesc:
    server = root.child("server_param").child("downpour_server_param")
    sparse, dense = read_tables(server.children("downpour_table_param"))
    _check_worker(root, server)
    return FleetDesc(
        sparse=sparse,
        dense=dense,
        trainers=read_trainers(root, Tables(sparse, dense, are_all)),
        service=read_service(server.child("service_param")),
        fs_client=(
            read_fs_client(root.child("fs_client_param")) if root.has("fs_client_param") else None
        ),
        launch=read_launch(root),
        clip=read_value(root.child("clip"), CLIPS) if root.has("clip") else None,
        source=root.place.source,
    )


def _check_worker(root: Node, server: Node) -> None:
    """pslib gives workers a copy of the servers' tables: one that differs would be ignored."""
    own = {it.get("table_id"): it.message for it in server.children("downpour_table_param")}
    worker = root.child("worker_param").child("downpour_worker_param")
    for node in worker.children("downpour_table_param"):
        if own.get(node.get("table_id")) != node.message:
            why = "differs from the server's table of that id, which is the one that counts"
            raise node.error("table_id", f"{node.get('table_id')} {why}; take it out")
