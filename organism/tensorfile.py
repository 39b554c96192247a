"""One self-describing file of named tensors, for genomes, training checkpoints and states.

Layout, all integers little-endian::

    8 bytes   magic, b"ORGANISM"
    4 bytes   length of the header
    header    msgpack map: kind, schema, meta (plain values), tensors [[name, dtype, shape], ...]
    data      the tensors' bytes, in the header's order, C-contiguous, nothing between
    32 bytes  sha256 of everything before it

The checksum is verified before the header is believed. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, StrictInt
from torch import Tensor

_MAGIC = b"ORGANISM"
_DIGEST_BYTES = 32
_MAX_DIMENSIONS = 8
_DTYPES: dict[str, torch.dtype] = {
    "<f4": torch.float32,
    "<f8": torch.float64,
    "<i8": torch.int64,
    "|u1": torch.uint8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Header(BaseModel):
    """What the data is; every field is checked before it is used."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    version: StrictInt = Field(alias="schema")
    meta: dict[str, Any]
    tensors: list[tuple[str, Literal["<f4", "<f8", "<i8", "|u1"], tuple[NonNegativeInt, ...]]]


class TensorFileError(ValueError):
    """The bytes are not a whole, undamaged file of the expected kind and schema."""


@dataclass(frozen=True)
class TensorFile:
    """Content of a tensor file: plain values and named tensors."""

    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def pack(kind: str, schema: int, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise; equal content gives equal bytes.

    Raises:
        TypeError: a tensor is of a type the format does not hold.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise TypeError(
                f"tensor {name!r} is {tensor.dtype}; the format holds {list(_DTYPE_NAMES)}"
            )
    index = [[name, _DTYPE_NAMES[t.dtype], list(t.shape)] for name, t in tensors.items()]
    header = msgpack.packb({"kind": kind, "schema": schema, "meta": dict(meta), "tensors": index})
    data = [t.detach().cpu().contiguous().numpy().tobytes() for t in tensors.values()]
    body = b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *data])
    return body + hashlib.sha256(body).digest()


def unpack(blob: bytes, kind: str, schema: int) -> TensorFile:
    """Verify and read a file of one kind and schema.

    Raises:
        TensorFileError: not such a file, truncated, damaged, of another kind or of an unknown
            schema.
    """
    start = len(_MAGIC) + 4
    if not blob.startswith(_MAGIC):
        raise TensorFileError(f"not a {kind} file: it does not begin with {_MAGIC!r}")
    if len(blob) < start + _DIGEST_BYTES:
        raise TensorFileError(f"truncated {kind} file: {len(blob)} bytes hold no header")
    body, digest = blob[:-_DIGEST_BYTES], blob[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise TensorFileError(
            f"damaged or truncated {kind} file: its sha256 does not match its content; "
            "restore it from a copy"
        )
    end = start + int.from_bytes(body[len(_MAGIC) : start], "little")
    try:
        header = _Header.model_validate(msgpack.unpackb(body[start:end]))
    except (ValueError, TypeError) as error:
        raise TensorFileError(f"malformed {kind} file: unreadable header ({error})") from error
    if header.kind != kind:
        raise TensorFileError(f"expected a {kind} file, this is a {header.kind} file")
    if header.version != schema:
        raise TensorFileError(
            f"{kind} file of schema {header.version}, this version reads schema {schema}: "
            "use the version that wrote it"
        )
    return TensorFile(header.meta, _read_tensors(body[end:], header, kind))


def _read_tensors(data: bytes, header: _Header, kind: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    offset = 0
    for name, dtype, shape in header.tensors:
        size = np.dtype(dtype).itemsize * math.prod(shape)
        if name in tensors:
            raise TensorFileError(f"malformed {kind} file: tensor {name!r} comes twice")
        if len(shape) > _MAX_DIMENSIONS:
            raise TensorFileError(f"malformed {kind} file: {name!r} has {len(shape)} dimensions")
        if offset + size > len(data):
            raise TensorFileError(f"malformed {kind} file: tensor {name!r} runs past the end")
        array = np.frombuffer(data[offset : offset + size], dtype).reshape(shape)
        tensors[name] = torch.from_numpy(array.copy())
        offset += size
    if offset != len(data):
        rest = len(data) - offset
        raise TensorFileError(f"malformed {kind} file: {rest} bytes follow the last tensor")
    return tensors
