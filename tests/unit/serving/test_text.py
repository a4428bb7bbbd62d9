"""Text for terminals: control characters of names, and encodings without their characters."""

from __future__ import annotations

import io
import json
import logging
import os
from typing import Any

import pytest

from serving.client import ClientConfig
from serving.commands.output import echo, print_table
from serving.text import ESCAPE, escape_controls, redact, redact_arguments, redact_logs, register_escape

NAME = "a\x1b[31m\x9b2J\x07\r\x7f\u202e\udcff.jpg"
"""Name of a file that would colour, clear, ring and overwrite, and that is not UTF-8."""

SHOWN = r"a\u001b[31m\u009b2J\u0007\u000d\u007f\u202e\udcff.jpg"


def test_control_characters_become_escapes_and_everything_else_stays() -> None:
    assert escape_controls(NAME) == SHOWN
    kept = "Käse\t日本 👩‍🍳 \u200f\n"
    assert escape_controls(kept) == kept
    assert escape_controls("a\nb\tc", newlines=True) == r"a\u000ab\u0009c"


def test_escaped_json_has_the_same_value() -> None:
    record = {"photo": NAME, "label": "Käse 👩‍🍳"}
    assert json.loads(escape_controls(json.dumps(record, ensure_ascii=False))) == record


def test_commands_print_no_control_characters_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    echo(NAME)
    echo(NAME, err=True)
    print_table(("photo", "status"), [(NAME, (NAME, "bold")), ("a[red]", "ok")])
    captured = capsys.readouterr()
    assert captured.err == f"{SHOWN}\n"
    assert captured.out.startswith(f"{SHOWN}\n")
    assert "a[red]" in captured.out
    assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e"} & set(captured.out)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_stream_of_any_encoding_takes_any_text(encoding: str) -> None:
    register_escape()
    raw = io.BytesIO()
    text = "Käse 日本 👩 " + os.fsdecode(b"\xff")
    with io.TextIOWrapper(raw, encoding, errors=ESCAPE, newline="\n") as stream:
        stream.write(json.dumps(text, ensure_ascii=False))
        stream.flush()
        assert json.loads(raw.getvalue().decode(encoding)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pa@ss@gateway:9091/x", "http://***@gateway:9091/x"),
        ("user:secret@gateway:9091", "***@gateway:9091"),
        ("https://token@gateway", "https://***@gateway"),
        ("the server 'u:secret@host' does not respond", "the server '***@host' does not respond"),
        ("--metrics_push=user:secret@gateway", "--metrics_push=***@gateway"),
        ("s3://key:secret@bucket/photos/?.jpg", "s3://***@bucket/photos/?.jpg"),
        (
            "Cannot read https://host/a.jpg?X-Amz-Signature=1&b: HTTP 403",
            "Cannot read https://host/a.jpg?*** HTTP 403",
        ),
        ("abfs://container@account/a@b.jpg", "abfs://container@account/a@b.jpg"),
        ("hubhead: no user: write to me@example.com", "hubhead: no user: write to me@example.com"),
        ({"push": ["http://u:p@h"], "n": 1, "none": None}, {"push": ["http://***@h"], "n": 1, "none": None}),
    ],
)
def test_secrets_of_addresses_are_redacted(text: Any, shown: Any) -> None:
    assert redact(text) == shown


def test_arguments_of_other_programs_are_redacted_by_the_names_of_their_options() -> None:
    given = [
        "--runner=X",
        "--s3_secret_access_key=a",
        "--s3_session_token",
        "b",
        "--no_token",
        "--x=s3://k:c@d",
    ]
    assert redact_arguments(given) == [
        "--runner=X", "--s3_secret_access_key=***", "--s3_session_token", "***", "--no_token", "--x=s3://***@d",
    ]  # fmt: skip


def test_no_handler_of_a_log_sees_the_secrets_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    before = logging.getLogRecordFactory()
    logger, stream = logging.getLogger("test_redaction"), io.StringIO()
    records: list[logging.LogRecord] = []
    handler = logging.StreamHandler(stream)
    handler.addFilter(lambda record: not records.append(record))
    monkeypatch.setattr(logger, "handlers", [handler])
    try:
        redact_logs()
        redact_logs()
        logger.warning("Cannot read %s: %d %%", "ftp://user:hunter2@host/a", 3)
        try:
            raise OSError("https://host/a?signature=hunter2")
        except OSError:
            logger.exception("It failed")
    finally:
        logging.setLogRecordFactory(before)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Cannot read ftp://***@host/a: 3 %"
    assert lines[1] == "It failed"
    assert lines[-1] == "OSError: https://host/a?***"
    assert not any("hunter2" in repr(vars(record)) for record in records)


def test_messages_on_stderr_contain_no_secrets_of_addresses(capsys: pytest.CaptureFixture[str]) -> None:
    echo("fetching s3://key:secret@bucket", err=True)
    assert capsys.readouterr().err == "fetching s3://***@bucket\n"
    assert "token" not in repr(ClientConfig("host:1", headers={"authorization": "token"}))
