"""docker-compose.yml conforms to the specification and to our rules, and each rule notices a change for the
worse."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from servers import COMPOSE, interpolated

ROOT = COMPOSE.parent
TEXT, EXAMPLE = COMPOSE.read_text(), (ROOT / ".env.example").read_text()
PINNED_IMAGE = re.compile(r"[\w./-]+:\d+\.\d+(\.\d+)?-[\w-]+")
NEEDED = {  # who waits for what, themselves or through others
    ("schema", "postgres", "service_healthy"),
    ("mlflow", "postgres", "service_healthy"),
    ("mlflow", "schema", "service_completed_successfully"),
    ("dashboard", "postgres", "service_healthy"),
    ("dashboard", "schema", "service_completed_successfully"),
}


def services(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)["services"]


def waits(text: str) -> set[tuple[str, str, str]]:
    direct = {
        (name, other, how["condition"])
        for name, parts in services(text).items()
        for other, how in parts.get("depends_on", {}).items()
    }
    return direct | {
        (name, far, how) for name, near, _ in direct for start, far, how in direct if start == near
    }


def pip_words(text: str) -> list[str]:
    lines = re.findall(r"pip install (.*)", text)
    return [word.strip('"') for line in lines for word in line.split() if not word.startswith("--")]


def nothing_is_published_beyond_loopback(text: str) -> list[str]:
    ports = [str(port) for parts in services(text).values() for port in parts.get("ports", [])]
    return [port for port in ports if not port.startswith("127.0.0.1:")] + re.findall("network_mode.*", text)


def versions_are_pinned(text: str) -> list[str]:
    images = re.findall(r"(?:image:|FROM) +(\S+)", text)
    loose = [image for image in images if not PINNED_IMAGE.fullmatch(image)]
    return loose + [word for word in pip_words(text) if not re.search(r"==\d+(\.\d+)+$", word)]


def everybody_who_stays_has_a_health_check(text: str) -> list[str]:
    ends = {other for _, other, how in waits(text) if how == "service_completed_successfully"}
    return [name for name, parts in services(text).items() if name not in ends and "healthcheck" not in parts]


def everybody_waits(text: str) -> list[str]:
    return sorted(map(str, NEEDED - waits(text)))


def passwords_come_from_the_environment(text: str) -> list[str]:
    values = {
        (name, variable): value
        for name, parts in services(text).items()
        for variable, value in parts.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|KEY", variable)
    }
    literal = [
        f"{name} {variable}"
        for (name, variable), value in values.items()
        if not re.match(r"\$\{\w+:[?-]", value)
    ]
    defaults = re.findall(r"\$\{\w*(?:PASSWORD|SECRET|KEY)\w*:-[^}]+\}", text)
    return literal + defaults + re.findall(r"://[^/@\s]*:[^/@\s]*@", text)


def the_database_password_is_required(text: str) -> list[str]:
    uses = re.findall(r"\$\{POSTGRES_PASSWORD[^}]*\}", text)
    return [use for use in uses if not use.startswith("${POSTGRES_PASSWORD:?")] if uses else ["no password"]


def mlflow_answers_known_hosts_only(text: str) -> list[str]:
    return (
        []
        if re.search(r"--allowed-hosts (localhost:\*|127\.0\.0\.1:\*|mlflow:\*|,)+\s", text)
        else ["allowed hosts"]
    )


def the_example_names_every_setting(text: str) -> list[str]:
    return sorted(set(re.findall(r"\$\{(\w+)", text)) ^ set(settings(EXAMPLE)))


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


POLICIES: list[tuple[Callable[[str], list[str]], list[tuple[str, str]]]] = [
    (
        nothing_is_published_beyond_loopback,
        [("127.0.0.1:5432:5432", "5432:5432"), ("127.0.0.1:8080:8080", "0.0.0.0:8080:8080")],
    ),
    (
        versions_are_pinned,
        [
            ("postgres:17.11-bookworm", "postgres:17"),
            ("postgres:17.11-bookworm", "postgres"),
            ("python:3.11.16-slim", "python:latest-slim"),
            ("optuna==5.0.0", "optuna"),
            ("mlflow[auth]==", "mlflow[auth]>="),
            ("boto3==1.44.5", "boto3"),
        ],
    ),
    (everybody_who_stays_has_a_health_check, [("    healthcheck:\n", "    x-healthcheck:\n")]),
    (
        everybody_waits,
        [
            ("condition: service_healthy", "condition: service_started"),
            ("condition: service_completed_successfully", "condition: service_started"),
        ],
    ),
    (
        passwords_come_from_the_environment,
        [
            ("${POSTGRES_PASSWORD:?copy .env.example to .env and set it there}", "hunter2"),
            ("${MLFLOW_SECRET_KEY:-}", "${MLFLOW_SECRET_KEY:-secret}"),
            ("quantlab@postgres", "quantlab:hunter2@postgres"),
        ],
    ),
    (the_database_password_is_required, [("${POSTGRES_PASSWORD:?", "${POSTGRES_PASSWORD:-")]),
    (
        mlflow_answers_known_hosts_only,
        [("localhost:*,", "*,"), ("--allowed-hosts", "--cors-allowed-origins")],
    ),
    (the_example_names_every_setting, [("${MLFLOW_SECRET_KEY", "${MLFLOW_OTHER_KEY")]),
]
WORSE = [(policy, before, after) for policy, changes in POLICIES for before, after in changes]


@pytest.mark.parametrize("policy", [policy for policy, _ in POLICIES], ids=lambda policy: policy.__name__)
def test_a_policy_holds(policy: Callable[[str], list[str]]) -> None:
    assert policy(TEXT) == []


@pytest.mark.parametrize(
    ("policy", "before", "after"), WORSE, ids=[f"{it[0].__name__}: {it[2]!r}" for it in WORSE]
)
def test_a_change_for_the_worse_is_noticed(
    policy: Callable[[str], list[str]], before: str, after: str
) -> None:
    assert before in TEXT
    for found in re.finditer(re.escape(before), TEXT):
        assert policy(f"{TEXT[: found.start()]}{after}{TEXT[found.end() :]}") != []


def checked(text: str, folder: Path) -> Result:
    """What the validator of the specification says."""
    file = folder / "docker-compose.yml"
    file.write_text(text)
    return CliRunner().invoke(check_jsonschema, ["--builtin-schema", "vendor.compose-spec", str(file)])


def test_it_conforms_to_the_compose_specification(tmp_path: Path) -> None:
    done = checked(TEXT, tmp_path)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("healthcheck:", "health_check:", "health_check"),
        ("restart: unless-stopped", "restart: [always]", "restart"),
        ("condition: service_healthy", "condition: healthy", "condition"),
    ],
)
def test_what_does_not_conform_is_named(before: str, after: str, problem: str, tmp_path: Path) -> None:
    done = checked(TEXT.replace(before, after), tmp_path)
    assert done.exit_code == 1 and problem in done.output


def test_the_example_is_refused_until_it_is_filled_in() -> None:
    given = settings(EXAMPLE)
    assert set(given.values()) == {""}
    with pytest.raises(ValueError, match="POSTGRES_PASSWORD is missing a value: copy .env.example"):
        interpolated(TEXT, given)
    assert "--app-name" not in interpolated(TEXT, {**given, "POSTGRES_PASSWORD": "x"})


@pytest.mark.parametrize(("file", "ignored"), [(".env", True), (".env.example", False)])
def test_git_ignores_the_passwords(file: str, ignored: bool) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    assert (subprocess.run([*git, "check-ignore", "--quiet", file]).returncode == 0) == ignored
    assert not ignored or not subprocess.run([*git, "ls-files", file], check=True, capture_output=True).stdout


def test_the_servers_have_versions_that_the_clients_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    ranges = {it.name: it.specifier for group in groups for it in map(Requirement, group)}
    pins = {Requirement(word).name: word.rpartition("==")[2] for word in pip_words(TEXT)}
    common = pins.keys() & ranges.keys()
    assert "mlflow" in common
    assert {name: ranges[name].contains(pins[name]) for name in common} == dict.fromkeys(common, True)
