"""Formats of the wire."""

from __future__ import annotations

import json

import msgpack

from server.wire import MSGPACK, IngestReply, Receipt, pack_receipt

RECEIPT = Receipt(12, 3, 0.25, None, 2.0, True)


def test_a_receipt_is_an_ingest_reply() -> None:
    """What is written by hand is what the schema describes, field by field."""
    assert list(Receipt._fields) == list(IngestReply.model_fields)
    media_type, body = pack_receipt("", RECEIPT)
    assert media_type == b"application/json"
    assert IngestReply(**json.loads(body)) == IngestReply(**RECEIPT._asdict())


def test_a_receipt_in_msgpack() -> None:
    """Where it is asked for."""
    media_type, body = pack_receipt(f"text/html, {MSGPACK};q=0.9", RECEIPT)
    assert media_type == MSGPACK.encode()
    assert msgpack.unpackb(body) == RECEIPT._asdict()
