"""Settings of the daemon, read once from ``ORGANISM_*`` environment variables."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from organism.chunking import DEFAULT_CHUNK_BYTES, Chunking

Fsync = Literal["always", "everysec", "no"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "text"]

_PREFIX = "ORGANISM_"
# What the command line and its users' shells may have set as well: where a daemon is.
_OF_CLIENTS = ("ORGANISM_URL",)
# A journal is dropped by segments: so many make up what is kept.
_SEGMENTS_KEPT = 8
# A recovery reads a segment at a time.
_LARGEST_SEGMENT_BYTES = 64 << 20
_SHIPPED_GENOME = Path(__file__).resolve().parents[1] / "checkpoints" / "default.genome"


class SettingsError(ValueError):
    """An environment that does not say how to run the daemon; the message names what is wrong."""


class ServerSettings(BaseModel):
    """How to run a daemon; each field is the variable ``ORGANISM_`` + its name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        "127.0.0.1", description="address to listen on; one beyond loopback needs api_key"
    )
    port: int = Field(8765, ge=0, le=65535, description="TCP port; 0 takes a free one")
    api_key: SecretStr | None = Field(
        None, min_length=1, description="bearer key asked of every request but health"
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="names, by commas, that a Host header may have beside localhost"
    )
    state_dir: Path = Field(
        Path("state"), description="folder of everything the organism has learned"
    )
    genome: Path = Field(_SHIPPED_GENOME, description="genome a new organism is born with")

    chunking: Chunking = Field("lines", description="how a message is cut: lines or windows")
    chunk_bytes: int = Field(
        DEFAULT_CHUNK_BYTES, ge=1, le=1 << 20, description="longest line, or the width of a window"
    )
    body_limit_bytes: int = Field(4 << 20, ge=1, le=1 << 30, description="largest message")
    queue_limit_bytes: int = Field(16 << 20, ge=1, description="messages waiting; beyond it: 503")
    ws_window: int = Field(
        64, ge=1, le=4096, description="WebSocket frames taken before their acknowledgement"
    )

    fsync: Fsync = Field(
        "always", description="when the journal is synced: always before a reply, everysec, or no"
    )
    journal_bytes: int = Field(
        64 << 20, ge=1, description="most recent bytes of the stream that the journal keeps"
    )
    snapshot_interval_s: float = Field(
        60.0, ge=0.1, le=86_400, description="time between snapshots: how much a start replays"
    )

    episode_chunks: int = Field(
        10_000, ge=1, le=100_000, description="most recent distinct chunks that recall searches"
    )
    episode_bytes: int = Field(16 << 20, ge=1, description="their bytes at most")
    probe_interval_s: float = Field(
        1.0, ge=0.05, le=86_400, description="time between measurements of live recall"
    )
    matches: int = Field(8, ge=1, le=64, description="matches in a reply to recall")

    connections: int = Field(256, ge=1, le=65536, description="open at a time; beyond it: 503")
    request_timeout_s: float = Field(
        30.0, ge=0.1, le=3600, description="time for a request to come in, or a reply to be read"
    )
    stop_timeout_s: int = Field(30, ge=1, le=3600, description="time a stop may take")
    log_level: LogLevel = Field("info", description="least grave log lines: debug names refusals")
    log_format: LogFormat = Field(
        "auto", description="json, text, or auto: text on a terminal, JSON elsewhere"
    )
    metrics_open: bool = Field(False, description="whether /metrics is served without the key")

    @property
    def segment_bytes(self) -> int:
        """Bytes after which the journal begins a new segment."""
        return min(max(self.journal_bytes // _SEGMENTS_KEPT, 1), _LARGEST_SEGMENT_BYTES)

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @model_validator(mode="after")
    def _guarded(self) -> ServerSettings:
        if not _is_loopback(self.host) and self.api_key is None:
            raise ValueError(
                f"host {self.host} is reachable from other machines: set ORGANISM_API_KEY, "
                "or use 127.0.0.1"
            )
        if self.queue_limit_bytes < self.body_limit_bytes:
            raise ValueError(
                f"queue_limit_bytes {self.queue_limit_bytes} is below "
                f"body_limit_bytes {self.body_limit_bytes}: "
                "the largest message could never be taken"
            )
        return self


def load_settings(environment: Mapping[str, str] | None = None) -> ServerSettings:
    """Read the settings of this process, or of a given environment.

    Raises:
        SettingsError: an unknown ``ORGANISM_`` variable, or a value that does not fit.
    """
    environment = os.environ if environment is None else environment
    values = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX) and name not in _OF_CLIENTS
    }
    for name in values.keys() - ServerSettings.model_fields.keys():
        near = difflib.get_close_matches(name, ServerSettings.model_fields, 1)
        hint = f"did you mean {_PREFIX}{near[0].upper()}?" if near else "see README.md for the list"
        raise SettingsError(f"unknown setting {_PREFIX}{name.upper()}: {hint}")
    try:
        return ServerSettings(**values)
    except ValidationError as error:
        faults = [
            f"{_PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}"
            if e["loc"]
            else str(e["msg"])
            for e in error.errors()
        ]
        raise SettingsError("; ".join(faults)) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
