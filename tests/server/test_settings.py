"""Settings of the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.settings import SettingsError, load_settings


def test_defaults_are_loopback_and_the_shipped_genome() -> None:
    """An empty environment runs."""
    settings = load_settings({"PATH": "/bin"})
    assert settings.host == "127.0.0.1"
    assert settings.api_key is None
    assert settings.genome.name == "default.genome"


def test_variables_are_typed() -> None:
    """Numbers, paths and choices."""
    settings = load_settings(
        {"ORGANISM_PORT": "0", "ORGANISM_STATE_DIR": "/x", "ORGANISM_CHUNKING": "windows"}
    )
    assert (settings.port, settings.state_dir, settings.chunking) == (0, Path("/x"), "windows")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "70000", "less than or equal to 65535"),
        ("CHUNKING", "words", "'lines' or 'windows'"),
        ("CHUNK_BYTES", "0", "greater than or equal to 1"),
        ("MATCHES", "many", "valid integer"),
        ("STATEDIR", "x", "did you mean ORGANISM_STATE_DIR"),
        ("COLOUR", "red", "unknown setting ORGANISM_COLOUR"),
        ("API_KEY", "", "at least 1"),
        ("HOST", "0.0.0.0", "set ORGANISM_API_KEY"),
        ("HOST", "example.org", "set ORGANISM_API_KEY"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: str, message: str) -> None:
    """The variable, what was expected, and the remedy."""
    with pytest.raises(SettingsError, match=message):
        load_settings({f"ORGANISM_{name}": value})


def test_a_given_environment_is_all_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own does not leak in."""
    monkeypatch.setenv("ORGANISM_PORT", "1")
    monkeypatch.setenv("organism_matches", "3")
    assert load_settings({}) == load_settings({"HOME": "/"})
    assert load_settings({}).port == 8765
    assert load_settings().port == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Nobody else can reach it."""
    assert load_settings({"ORGANISM_HOST": host}).host == host


def test_a_key_opens_other_addresses_and_is_not_shown() -> None:
    """With a key any address will do; printing the settings does not give it away."""
    settings = load_settings({"ORGANISM_HOST": "0.0.0.0", "ORGANISM_API_KEY": "sesame"})
    assert "sesame" not in repr(settings)
