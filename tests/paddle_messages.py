"""Paddle's messages, made of the names and numbers of their fields alone: a parser not ours."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

PADDLE = Path(__file__).parent / "paddle"


@cache
def ps_parameter() -> Any:
    """The class of Paddle's PSParameter."""
    facts = json.loads((PADDLE / "fields.json").read_text(encoding="utf-8"))
    file = descriptor_pb2.FileDescriptorProto(
        name="paddle_ps.proto", package=facts["package"], syntax="proto2"
    )
    for name, fields in facts["messages"].items():
        message = file.message_type.add(name=name)
        for field, number, label, kind, type_name in fields:
            message.field.add(name=field, number=number, label=label, type=kind)
            if type_name:
                message.field[-1].type_name = f".{type_name}"
    messages = {message.name: message for message in file.message_type}
    for name, values in facts["enums"].items():
        outer, _, own = name.rpartition(".")
        enum = (messages[outer] if outer else file).enum_type.add(name=own)
        for value, number in values:
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{facts['package']}.PSParameter")
    )


def paddle_parse(text: str) -> Any:
    """Read a text as Paddle does. Raises text_format.ParseError for what it does not know."""
    return text_format.Parse(text, ps_parameter()())
