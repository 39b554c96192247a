"""Documents say what is there: tests that are named exist, settings are listed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[1]
_REFERENCE = re.compile(r"`((?:[\w/]+\.py)|…)(?:::(\w+))?`")


def named_tests() -> list[tuple[str, str]]:
    """Files and tests that prove the promises; ``…`` is the file named before."""
    found, file = [], ""
    for name, test in _REFERENCE.findall((ROOT / "docs" / "behaviour.md").read_text()):
        file = file if name == "…" else name
        found.append((file, test))
    return found


@pytest.mark.parametrize(("file", "test"), sorted(set(named_tests())))
def test_what_proves_a_promise_exists(file: str, test: str) -> None:
    """A promise whose proof is gone is none."""
    assert f"def {test}" in (ROOT / "tests" / file).read_text()


def test_there_are_promises() -> None:
    """The pattern above still finds them."""
    assert len(named_tests()) > 60


@pytest.mark.parametrize("field", ServerSettings.model_fields)
def test_every_setting_is_in_the_readme(field: str) -> None:
    """By the name of its variable."""
    assert f"ORGANISM_{field.upper()}`" in (ROOT / "README.md").read_text()
