"""Settings: every problem in one message, no secret in any, and the documents in step."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from kyb_backup_pipeline.engine import config
from kyb_backup_pipeline.engine.config import PROCEDURE_VARIABLES
from kyb_backup_pipeline.engine.errors import SettingsInvalid
from kyb_backup_pipeline.engine.settings import Settings

_DOCS = Path(__file__).parent.parent / "docs"


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All settings with their sections, such as ``backup.level``."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += keys(inner, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def test_the_procedures_variables_keep_their_names_and_defaults() -> None:
    settings = config.load(environment={})
    database = settings.database
    assert (database.host, database.port, database.name, database.user) == (
        "localhost", 5432, "kyb_platform", "kyb_user",
    )  # fmt: skip
    assert settings.repository == Path("/backups")
    assert settings.backup.minimum_free == 2 * 1024**3
    settings = config.load(
        environment={
            "DB_HOST": "db", "DB_PORT": "5433", "DB_NAME": "n", "DB_USER": "u",
            "DB_PASSWORD": "p", "BACKUP_DIR": "/b", "LOG_FILE": "/l", "UNRELATED": "x",
        }
    )  # fmt: skip
    assert settings.database.host == "db"
    assert settings.database.port == 5433
    assert settings.database.password is not None
    assert settings.database.password.get_secret_value() == "p"
    assert (settings.repository, settings.log_file) == (Path("/b"), Path("/l"))


def test_the_environment_beats_the_file_and_options_beat_both(tmp_path: Path) -> None:
    file = tmp_path / "kyb.toml"
    file.write_text('repository = "backups"\n[backup]\nlevel = 3\njobs = 4\n')
    settings = config.load(file, environment={"KYB_BACKUP__LEVEL": "5"})
    assert (settings.backup.level, settings.backup.jobs) == (5, 4)
    assert settings.repository == tmp_path / "backups"
    settings = config.load(
        file, environment={"BACKUP_DIR": "/env"}, overrides={"repository": "/option"}
    )
    assert settings.repository == Path("/option")


def test_every_problem_is_in_one_message_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "kyb.toml"
    file.write_text('[database]\nport = "many"\nhots = "db"\n[bakup]\nlevel = 1\n')
    with pytest.raises(SettingsInvalid) as refused:
        config.load(
            file, environment={"KYB_BACKUP__LEVLE": "3", "DB_NAME": "", "KYB_BACKUP__JOBS": "0"}
        )
    message = refused.value.message
    assert message.startswith("the settings have 5 problems:")
    for part in (
        f"database.port (file {file}): ",
        f"database.hots (file {file}): unknown setting",
        f"bakup (file {file}): unknown setting",
        "backup.levle (environment variable KYB_BACKUP__LEVLE): unknown setting",
        "backup.jobs (environment variable KYB_BACKUP__JOBS): ",
    ):
        assert part in message


def test_a_broken_file_a_missing_file_and_a_missing_secret_file_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[database\n")
    with pytest.raises(SettingsInvalid, match=r"broken\.toml: not valid TOML: .*line 1"):
        config.load(broken, environment={})
    with pytest.raises(SettingsInvalid, match=r"gone\.toml: No such file or directory"):
        config.load(tmp_path / "gone.toml", environment={})
    with pytest.raises(SettingsInvalid, match=r"gone\.toml: No such file or directory"):
        config.load(environment={"KYB_CONFIG": str(tmp_path / "gone.toml")})
    file = tmp_path / "kyb.toml"
    file.write_text('[database]\npassword_file = "secret"\n')
    with pytest.raises(SettingsInvalid, match=r"password_file: file .*/secret: No such file"):
        config.load(file, environment={})


def test_no_message_and_no_repr_echoes_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    file = tmp_path / "kyb.toml"
    file.write_text('[database]\npassword_file = "secret"\nport = "hunter2"\n')
    with pytest.raises(SettingsInvalid) as refused:
        config.load(file, environment={"KYB_BACKUP__LEVEL": "hunter2"})
    assert "hunter2" not in str(refused.value)
    file.write_text('[database]\npassword_file = "secret"\n')
    settings = config.load(file, environment={})
    assert settings.database.password is not None
    assert settings.database.password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(settings)


def test_every_setting_stands_in_the_documents_and_none_else() -> None:
    documented = re.findall(r"^\| `([\w.]+)` \|", (_DOCS / "settings.md").read_text(), re.M)
    assert documented == keys(Settings)


def test_every_procedure_variable_stands_in_the_documents() -> None:
    text = (_DOCS / "settings.md").read_text()
    for name, where in PROCEDURE_VARIABLES.items():
        assert f"| `{'.'.join(where)}` | `{name}` |" in text
