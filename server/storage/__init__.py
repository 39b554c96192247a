"""Durable bytes: what must survive the process. Bytes in, bytes out; no torch."""
