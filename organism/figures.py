"""Figures as a command prints them for programs: one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_json(figures: Mapping[str, Any]) -> str:
    """Serialise figures; what is not a number becomes null, for JSON has no NaN.

    >>> to_json({"auroc": float("nan"), "lines": 3})
    '{"auroc": null, "lines": 3}'
    """
    return json.dumps({k: None if v != v else v for k, v in figures.items()}, allow_nan=False)
