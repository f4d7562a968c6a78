"""How penchant's bytes travel inside a Flower message: one record, one field, nothing else."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from penchant.common.errors import CodecError

__all__ = ["message_type", "pack", "stage_of", "unpack"]


_RECORD = "penchant"
_FIELD = "payload"
_CATEGORY = "train"


def message_type(stage: str) -> str:
    """Flower's message type of a stage, e.g. ``train.keys``."""
    return f"{_CATEGORY}.{stage}"


def stage_of(kind: str) -> str:
    """The inverse of `message_type`."""
    return kind.removeprefix(f"{_CATEGORY}.")


def pack(payload: bytes) -> RecordDict:
    """A message content that carries `payload`."""
    return RecordDict({_RECORD: ConfigRecord({_FIELD: payload})})


def unpack(content: RecordDict) -> bytes:
    """The payload of `content`; CodecError when there is anything else in it, or nothing."""
    records = content.config_records
    if len(content) != 1 or set(records) != {_RECORD} or set(records[_RECORD]) != {_FIELD}:
        raise CodecError("not a penchant message: it must hold one payload and nothing else")
    payload = records[_RECORD][_FIELD]
    if not isinstance(payload, bytes):
        raise CodecError("not a penchant message: its payload is not bytes")
    return payload
