"""One tree of settings, loaded once, every problem reported together.

Later beats earlier: declared defaults, the TOML file, the environment, secret files. The procedures'
variables keep their names (``DB_HOST``, ``BACKUP_DIR``, …); everything else is
``KYB_<SECTION>__<KEY>``, as in ``KYB_BACKUP__LEVEL=1``. An unknown key or an unknown ``KYB_``
variable is an error that names it and where it stands. No message repeats a secret's value.

Why this is not pydantic-settings: docs/decisions/002-settings-loader.md.
"""

import json
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ValidationError,
)

from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.settings import Settings

DEFAULT_FILE = Path("kyb_backup.toml")
FILE_VARIABLE = "KYB_CONFIG"

PROCEDURE_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "BACKUP_DIR": ("repository",),
    "LOG_FILE": ("log_file",),
    "DB_HOST": ("database", "host"),
    "DB_PORT": ("database", "port"),
    "DB_NAME": ("database", "name"),
    "DB_USER": ("database", "user"),
    "DB_PASSWORD": ("database", "password"),
    "ALERT_EMAIL": ("alerts", "email"),
}
"""Variables that keep the names they have in the shell procedures."""


def load(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Load the settings; ``overrides`` (from command-line options) beat everything.

    Without ``file`` the path in ``KYB_CONFIG`` counts, then ``kyb_backup.toml`` in the current
    folder if it is there; a file that was named and is missing is an error. Raises SettingsInvalid
    with every problem in one message.
    """
    problems: list[str] = []
    origins: dict[tuple[str, ...], str] = {}
    path = _chosen_file(file, environment)
    merged: dict[str, Any] = {}
    if path is not None:
        merged = _from_file(path, problems)
        _note_origins(merged, (), f"file {path}", origins)
    _add_environment(merged, environment, origins, problems)
    for key, value in (overrides or {}).items():
        _put(merged, (key,), value)
        origins[key,] = "the command line"
    for where, place in _secret_places(merged):
        _read_secret_file(where, place, origins, problems)
    settings = None
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        problems.extend(_explain(problem, origins) for problem in error.errors())
    if problems or settings is None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise SettingsInvalid(
            f"the settings have {len(problems)} problem{'s' * (len(problems) != 1)}:\n{lines}",
            hint="docs/settings.md lists every key with its default",
        )
    return settings


def _chosen_file(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if named := environment.get(FILE_VARIABLE):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _from_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        problems.append(f"file {path}: {reason}")
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(f"file {path}: not valid TOML: {error}")
        return {}
    folder = path.resolve().parent
    for section, key in _PATH_KEYS:
        place = content if section is None else content.get(section)
        if isinstance(place, dict) and isinstance(place.get(key), str):
            place[key] = str(folder / place[key])
    for _, channel in _channels(content):
        if isinstance(channel.get("url_file"), str):
            channel["url_file"] = str(folder / channel["url_file"])
    for _, target in _offsite_targets(content):
        for key in ("secret_access_key_file", "session_token_file", "credentials_file"):
            if isinstance(target.get(key), str):
                target[key] = str(folder / target[key])
    return content


_PATH_KEYS = (
    (None, "repository"),
    (None, "log_file"),
    ("database", "password_file"),
    ("restore_test", "directory"),
    ("wal", "inbox"),
    ("encryption", "identity_file"),
    ("encryption", "passphrase_file"),
    ("application", "root"),
    ("application", "logs"),
    ("application", "token_file"),
    ("configuration", "root"),
    ("recovery", "password_file"),
    ("recovery", "journals"),
    ("recovery", "data_directory"),
    ("offsite", "secret_access_key_file"),
    ("offsite", "session_token_file"),
    ("offsite", "credentials_file"),
    ("metrics", "file"),
    ("alerts", "smtp_password_file"),
    ("alerts", "ping_url_file"),
)
"""Paths in the file are taken relative to the folder the file stands in."""


def _add_environment(
    merged: dict[str, Any],
    environment: Mapping[str, str],
    origins: dict[tuple[str, ...], str],
    problems: list[str],
) -> None:
    for name, value in environment.items():
        if name in PROCEDURE_VARIABLES:
            if value == "":
                continue  # as ${DB_HOST:-localhost} has it in the procedures
            where = PROCEDURE_VARIABLES[name]
        elif name.startswith("KYB_") and name != FILE_VARIABLE:
            where = tuple(name.removeprefix("KYB_").lower().split("__"))
            if not _known(where):
                problems.append(f"{'.'.join(where)} (environment variable {name}): unknown setting")
                continue
        else:
            continue
        origins[where] = f"environment variable {name}"
        split = _LIST_KEYS.get(where)
        try:
            _put(merged, where, value if split is None else split(value))
        except ValueError as error:
            problems.append(f"{'.'.join(where)} (environment variable {name}): {error}")


def _by_comma(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


_LIST_KEYS: Mapping[tuple[str, ...], Callable[[str], Any]] = {
    ("postgres", "bin_dirs"): _by_comma,
    ("encryption", "recipients"): _by_comma,
    ("configuration", "include"): _by_comma,
    ("configuration", "exclude"): _by_comma,
    ("application", "sessions_command"): shlex.split,
    ("application", "stop_command"): shlex.split,
    ("application", "start_command"): shlex.split,
    ("recovery", "stop_server_command"): shlex.split,
    ("recovery", "start_server_command"): shlex.split,
    ("alerts", "email"): _by_comma,
    ("alerts", "report_email"): _by_comma,
    ("alerts", "channels"): json.loads,
    ("offsite", "targets"): json.loads,
}
"""How lists are written in one variable: commands as for a shell, tables as JSON, all else with commas."""


def _known(where: tuple[str, ...]) -> bool:
    model: Any = Settings
    for key in where:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
        if key not in model.model_fields:
            return False
        model = model.model_fields[key].annotation
    return not (isinstance(model, type) and issubclass(model, BaseModel))


def _put(tree: dict[str, Any], where: tuple[str, ...], value: Any) -> None:
    *sections, key = where
    for section in sections:
        inner = tree.get(section)
        if not isinstance(inner, dict):
            inner = tree[section] = {}
        tree = inner
    tree[key] = value


def _note_origins(
    tree: Mapping[str, Any],
    where: tuple[str, ...],
    origin: str,
    origins: dict[tuple[str, ...], str],
) -> None:
    for key, value in tree.items():
        origins[*where, key] = origin
        if isinstance(value, dict):
            _note_origins(value, (*where, key), origin, origins)


_SECRET_FILES = (
    ("database", "password"),
    ("encryption", "passphrase"),
    ("application", "token"),
    ("recovery", "password"),
    ("alerts", "smtp_password"),
    ("alerts", "ping_url"),
    ("offsite", "secret_access_key"),
    ("offsite", "session_token"),
)
"""Settings that can stand in a file of their own, named by the same key with ``_file``."""


def _secret_places(
    merged: Mapping[str, Any],
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each of these settings, and the table that it stands in."""
    for section, key in _SECRET_FILES:
        if isinstance(merged.get(section), dict):
            yield (section, key), merged[section]
    for number, channel in _channels(merged):
        yield ("alerts", "channels", str(number), "url"), channel
    for name, target in _offsite_targets(merged):
        for key in ("secret_access_key", "session_token"):
            yield ("offsite", "targets", name, key), target


def _channels(tree: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    alerts = tree.get("alerts")
    channels = alerts.get("channels") if isinstance(alerts, dict) else None
    for number, channel in enumerate(channels if isinstance(channels, list) else ()):
        if isinstance(channel, dict):
            yield number, channel


def _offsite_targets(tree: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    offsite = tree.get("offsite")
    targets = offsite.get("targets") if isinstance(offsite, dict) else None
    for name, target in targets.items() if isinstance(targets, dict) else ():
        if isinstance(target, dict):
            yield name, target


def _read_secret_file(
    where: tuple[str, ...],
    place: dict[str, Any],
    origins: dict[tuple[str, ...], str],
    problems: list[str],
) -> None:
    key = where[-1]
    if not isinstance(place.get(f"{key}_file"), str):
        return
    path = Path(place[f"{key}_file"])
    try:
        place[key] = path.read_text(encoding="utf-8").rstrip("\r\n")
        origins[where] = f"secret file {path}"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        problems.append(f"{'.'.join(where)}_file: file {path}: {reason}")


def _explain(problem: Any, origins: Mapping[tuple[str, ...], str]) -> str:
    where = tuple(str(part) for part in problem["loc"])
    origin = next(
        (origins[where[:n]] for n in range(len(where), 0, -1) if where[:n] in origins), None
    )
    text = "unknown setting" if problem["type"] == "extra_forbidden" else problem["msg"].lower()
    return ".".join(where) + (f" ({origin})" if origin else "") + f": {text}"
