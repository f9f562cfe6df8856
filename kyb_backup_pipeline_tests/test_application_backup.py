"""The application's state before a deployment: its API in every mood, sessions, two at once, exit codes."""

import json
import signal
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from kyb_backup_pipeline.engine.errors import BackupFailed, InvalidRequest, Locked
from kyb_backup_pipeline.engine.file_unpacking import Options, restore_into
from kyb_backup_pipeline.engine.manifest import MANIFEST
from kyb_backup_pipeline.engine.settings import Settings
from kyb_backup_pipeline_tests.platforms import Platform, answer, answering
from kyb_backup_pipeline_tests.running import Cli, wait_until

GOOD = b'{"a": true, "b": false}'


def unpacked(platform: Platform, backup_id: str) -> Path:
    into = platform.place / f"into-{backup_id}"
    restore_into(platform.settings, platform.repository.find(backup_id), into, Options())
    return into


def test_everything_of_the_state_is_in_it(platform: Platform) -> None:
    settings = platform.with_settings(
        APPLICATION__SESSIONS="command", APPLICATION__SESSIONS_COMMAND="printf 'one\\ntwo\\n'"
    )
    backup = platform.application(settings, deployment="v4.13.0", backup_id="state")
    manifest = backup.require_manifest()
    assert (manifest.deployment, manifest.version) == ("v4.13.0", "4.12.3")
    assert manifest.components == dict.fromkeys(
        ["feature_flags", "sessions", "configs", "logs"], True
    )
    assert [archive.path for archive in manifest.archives] == [
        "state.tar.zst.age", "logs.tar.zst.age",
    ]  # fmt: skip
    assert platform.verify(backup).verdict == "passed"
    into = unpacked(platform, "state")
    assert platform.tree(into / "configs") == platform.tree(platform.root / "configs")
    assert json.loads((into / "feature_flags.json").read_bytes()) == platform.flags()
    assert (into / "sessions.out").read_text() == "one\ntwo\n"
    assert (into / "logs" / "api.log").read_text() == "a line\n"
    assert (into / "VERSION").read_text() == "4.12.3\n"


# The API in every mood


def _slow(request: BaseHTTPRequestHandler, number: int) -> None:
    time.sleep(3)
    answer(request, 200, GOOD)


def _drips(request: BaseHTTPRequestHandler, number: int) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.end_headers()
    for _ in range(30):
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.1)


def _endless(request: BaseHTTPRequestHandler, number: int) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.end_headers()
    for _ in range(1024):
        request.wfile.write(b" " * (1 << 20))


def _always(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Any:
    return lambda request, number: answer(request, status, body, kind, **headers)


@pytest.mark.parametrize(
    ("mood", "said", "asked"),
    [
        (_slow, "no answer within 1 s", 3),
        (_drips, "did not answer in time", 3),
        (_endless, "answered with more than 16777216 bytes", 1),
        (_always(500, b"{}"), "answered 500", 3),
        (_always(503, b"{}"), "answered 503", 3),
        (_always(401, b"{}"), "answered 401 Unauthorized", 1),
        (_always(404, b"{}"), "answered 404", 1),
        (_always(302, b"", Location="/login"), "answered 302", 1),
        (_always(200, b"<html>log in</html>", "text/html"), "answered with text/html instead", 1),
        (_always(200, b"{not json"), "something that is not JSON", 1),
        (_always(200, b""), "something that is not JSON", 1),
        (_always(200, b"[" * 100_000), "something that is not JSON", 1),
        (_always(200, GOOD, length="1000"), "broke off", 3),
        (_always(200, GOOD, **{"Content-Encoding": "gzip"}), "a compressed body", 1),
    ],
)
def test_an_answer_that_is_none_stops_the_backup(
    platform: Platform, mood: Callable[[BaseHTTPRequestHandler, int], None], said: str, asked: int
) -> None:
    with answering(mood) as answers:
        settings = platform.with_settings(
            APPLICATION__FLAGS_URL=answers.url, APPLICATION__TIMEOUT="1", APPLICATION__RETRIES="2"
        )
        with pytest.raises(BackupFailed) as failed:
            platform.application(settings)
    assert said in failed.value.message
    assert failed.value.message.startswith("feature flags: GET http://127.0.0.1")
    assert len(answers.seen) == asked
    assert not platform.repository.backups(("application_state",))
    assert not list((platform.place / "backups/application/state").iterdir())


def test_no_service_stops_the_backup_and_says_so(platform: Platform) -> None:
    platform.service("stop")
    with pytest.raises(BackupFailed, match="connection refused"):
        platform.application()
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.run("backup", "application", "--deployment", "v2")
    assert (run.returncode, "is the service running?" in run.stderr) == (5, True)


def test_500_and_then_200_is_a_backup(platform: Platform) -> None:
    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        answer(request, 200 if number == 2 else 500, GOOD)

    with answering(mood) as answers:
        settings = platform.with_settings(
            APPLICATION__FLAGS_URL=answers.url, APPLICATION__RETRIES="3"
        )
        platform.application(settings, backup_id="third")
    assert len(answers.seen) == 3
    assert (unpacked(platform, "third") / "feature_flags.json").read_bytes() == GOOD


def test_the_token_goes_into_a_header_and_nowhere_else(
    platform: Platform,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "token").write_text("tell-nobody-4711\n")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password netrc-secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    good = {"Authorization": "Bearer tell-nobody-4711"}
    caplog.set_level("DEBUG")

    def mood(request: BaseHTTPRequestHandler, number: int) -> None:
        right = request.headers["Authorization"] == good["Authorization"]
        answer(request, 200 if right else 401, GOOD)

    with answering(mood) as answers:
        where = answers.url.replace("127", "user:tell-nobody-either@127")
        changes = {
            "APPLICATION__TOKEN_FILE": str(tmp_path / "token"),
            "APPLICATION__FLAGS_URL": where,
        }
        backup = platform.application(platform.with_settings(**changes))
    (tmp_path / "token").write_text("wrong-4711")
    with answering(mood) as answers:
        changes["APPLICATION__FLAGS_URL"] = answers.url
        wrong = platform.with_settings(**changes)
        with pytest.raises(BackupFailed) as failed:
            platform.application(wrong, backup_id="refused")
    assert "application.token_file" in (failed.value.hint or "")
    text = (backup.folder / MANIFEST).read_text() + str(failed.value) + caplog.text + repr(wrong)
    for secret in ("tell-nobody", "wrong-4711", "netrc-secret"):
        assert secret not in text


# Sessions


def test_sessions_over_http_must_be_json(platform: Platform) -> None:
    with answering(_always(200, b'[{"user": 1}]')) as answers:
        settings = platform.with_settings(
            APPLICATION__SESSIONS="http", APPLICATION__SESSIONS_URL=answers.url
        )
        platform.application(settings, backup_id="http")
    assert (unpacked(platform, "http") / "sessions.json").read_bytes() == b'[{"user": 1}]'
    with answering(_always(200, b"<html>", "text/html")) as answers:
        settings = platform.with_settings(
            APPLICATION__SESSIONS="http", APPLICATION__SESSIONS_URL=answers.url
        )
        with pytest.raises(BackupFailed, match=r"sessions: GET .* text/html"):
            platform.application(settings)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sh -c 'echo half; exit 3'", "ended with status 3"),
        ("sleep 30", "did not end within 1 s"),
        ("sh -c 'yes'", "more than 100000 bytes"),
        ("/nowhere/program", "could not be started"),
        ("", "sessions_command is not set"),
    ],
)
def test_a_command_for_sessions_that_fails_stops_the_backup(
    platform: Platform, command: str, said: str
) -> None:
    settings = platform.with_settings(
        APPLICATION__SESSIONS="command", APPLICATION__SESSIONS_COMMAND=command,
        APPLICATION__SESSIONS_TIMEOUT="1", APPLICATION__SESSIONS_LIMIT="100000",
    )  # fmt: skip
    with pytest.raises(BackupFailed, match=said):
        platform.application(settings)
    assert not platform.repository.backups(("application_state",))


def test_sessions_come_from_a_query_that_can_only_read(
    platform: Platform, settings: Settings
) -> None:
    database = settings.database
    where = {"DB_HOST": database.host, "DB_PORT": str(database.port), "DB_NAME": database.name,
             "DB_USER": database.user}  # fmt: skip
    platform.environment |= where

    def query(text: str, **more: str) -> Settings:
        return platform.with_settings(
            APPLICATION__SESSIONS="query", APPLICATION__SESSIONS_QUERY=text, **more
        )

    good = query(
        "SELECT id, email, '\\x00ff'::bytea AS key FROM users ORDER BY id LIMIT 3; -- all\n"
    )
    with pytest.raises(BackupFailed, match="sessions: the query failed"):
        platform.application(good)  # a comment behind the semicolon hides what follows it
    platform.application(
        query("SELECT id, email, '\\x00ff'::bytea AS key FROM users ORDER BY id LIMIT 3; "),
        backup_id="query",
    )
    lines = (unpacked(platform, "query") / "sessions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [1, 2, 3]
    assert rows[0]["key"] == "\\x00ff"
    for text, said in (
        ("DELETE FROM users RETURNING id", "failed"),
        ("SELECT pg_sleep(10)", "statement timeout"),
        ("SELECT * FROM nothing_here", "nothing_here"),
        ("SELECT nextval('kyb.case_number_seq')", "read-only transaction"),
        ("", "is not set"),
    ):
        with pytest.raises(BackupFailed, match=said):
            platform.application(query(text, APPLICATION__SESSIONS_TIMEOUT="1"))
    with pytest.raises(BackupFailed, match="more than 1000 bytes"):
        platform.application(query("SELECT * FROM users", APPLICATION__SESSIONS_LIMIT="1000"))


# Deployments


def test_of_two_at_once_one_is_made_and_the_other_is_told(platform: Platform) -> None:
    (platform.root / "configs" / "big").write_bytes(bytes(10) + b"x" * 150_000_000)
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    first = cli.start("backup", "application", "--deployment", "v9", "--id", "first")
    wait_until((platform.place / "backups/application/state/.first.partial").exists, "it has begun")
    first.kill(signal.SIGSTOP)  # else it may be done before the other one looks
    second = cli.run("backup", "application", "--deployment", "v9", "--id", "second")
    first.kill(signal.SIGCONT)
    assert second.returncode == Locked.exit_code, second.stderr
    assert "another application state backup is being written: for deployment v9" in second.stderr
    assert f"process {first.pid}" in second.stderr
    assert first.wait() == 0, first.stderr
    assert [b.backup_id for b in platform.repository.backups(("application_state",))] == ["first"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "two\nlines"])
def test_a_deployment_must_have_a_name(platform: Platform, name: str) -> None:
    with pytest.raises(InvalidRequest, match="no name of a deployment"):
        platform.application(deployment=name)


def test_a_deploy_script_goes_on_only_after_a_backup(platform: Platform) -> None:
    cli = Cli(platform.file(platform.place / "kyb.toml"))
    run = cli.run("backup", "application", "--deployment", "v4.13.0")
    assert run.returncode == 0, run.stderr
    assert "before deployment v4.13.0: feature flags, configs, logs" in run.stdout
    assert cli.run("backup", "application").returncode == 2
    (platform.place / "keys").rename(platform.place / "away")
    run = cli.run("verify", "--all")
    assert run.returncode == 10, run.stdout
    assert "checksum passed, content could not be verified" in run.stdout
    run = cli.run("backup", "application", "--deployment", "v4.14.0", "--json")
    assert run.returncode == 0  # the key is needed to look into it, not to make it
    assert json.loads(run.stdout)["deployment"] == "v4.14.0"
    shown = cli.run("show", json.loads(run.stdout)["backup_id"])
    assert "deployment     v4.14.0" in shown.stdout


def test_missing_logs_are_a_note_and_missing_configuration_is_an_error(platform: Platform) -> None:
    settings = platform.with_settings(APPLICATION__LOGS="/nowhere")
    manifest = platform.application(settings).require_manifest()
    assert manifest.notes == ("there is no folder /nowhere: no logs in this backup",)
    assert manifest.components["logs"] is False
    with pytest.raises(BackupFailed, match="there is no folder"):
        platform.application(platform.with_settings(APPLICATION__CONFIGS="gone"))


def test_configuration_behind_a_link_is_followed(platform: Platform) -> None:
    """As with releases that share one folder: configs -> ../shared."""
    (platform.root / "configs").rename(platform.place / "shared")
    (platform.root / "configs").symlink_to("../shared")
    platform.application(backup_id="linked")
    found = platform.tree(unpacked(platform, "linked") / "configs")
    assert found == platform.tree(platform.place / "shared")
    notes = platform.configuration().require_manifest().notes
    assert notes[0].startswith("configs is a link out of the folder")
