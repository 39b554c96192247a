"""Figures as a command prints them for programs: one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_json(figures: Mapping[str, Any]) -> str:
    """Serialise figures, nested ones too; what is not a number becomes null: JSON has no NaN.

    >>> to_json({"auroc": float("nan"), "rows": [{"lines": 3, "auroc": float("nan")}]})
    '{"auroc": null, "rows": [{"lines": 3, "auroc": null}]}'
    """
    return json.dumps(_without_nan(figures), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
