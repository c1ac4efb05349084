"""Where health and metrics may be told: on this machine, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from chump_orchestrator import config
from chump_orchestrator.core.errors import ConfigError


def listen(root: Path, text: str) -> str:
    folder = root / ".chump"
    folder.mkdir(exist_ok=True)
    (folder / "orchestrator.toml").write_text(f"[http]\nlisten = {text}\n")
    loaded = config.load(root, environ={}, user_file=root / "none.toml")
    return loaded.settings.http.listen


def test_it_is_off_by_default(tmp_path: Path) -> None:
    loaded = config.load(tmp_path, environ={}, user_file=tmp_path / "none.toml")

    assert loaded.settings.http.listen == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:9464",
        "127.1.2.3:1",
        "[::1]:65535",
        "unix:/run/user/1000/chump.sock",
        "unix:.chump/orchestrator/http.sock",
    ],
)
def test_this_machine_may_be_listened_at(tmp_path: Path, text: str) -> None:
    assert listen(tmp_path, f'"{text}"') == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0:9464", "others than this machine could reach it"),
        ("192.168.1.2:9464", "others than this machine could reach it"),
        ("[::]:9464", "others than this machine could reach it"),
        ("[fe80::1]:9464", "others than this machine could reach it"),
        ("[::ffff:10.0.0.1]:80", "others than this machine could reach it"),
        ("::1:9464", "this is no address with a port"),
        ("[127.0.0.1]:9464", "an address of IPv6 goes into brackets, and no other"),
        ("localhost:9464", "its host is no address; localhost has two"),
        ("metrics.example:9464", "its host is no address"),
        ("127.0.0.1.example:9464", "its host is no address"),
        ("127.0.0.1", "this is no address with a port"),
        (":9464", "its host is no address"),
        ("9464", "this is no address with a port"),
        ("127.0.0.1:0", "there is no such port"),
        ("127.0.0.1:65536", "there is no such port"),
        ("127.0.0.1:9464/metrics", "this is no address with a port"),
        ("http://127.0.0.1:9464", "this is no address with a port"),
        ("127.1:9464", "its host is no address"),
        ("2130706433:80", "its host is no address"),
        ("unix:", "no path"),
        ("unix:~/chump.sock", "~ is not expanded"),
    ],
)
def test_nobody_else_is_listened_to_and_the_error_says_what_would_be_valid(
    tmp_path: Path, text: str, why: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        listen(tmp_path, f'"{text}"')

    told = str(refused.value)
    assert f"orchestrator.toml:2: http.listen: {text!r}: {why}; write" in told
    assert told.endswith('write "127.0.0.1:9464", "[::1]:9464", "unix:PATH", or ""')


@pytest.mark.parametrize("text", ["9464", "true", '"127.0.0.1:94\\u00b2"', '"127.0.0.1:94\\n"'])
def test_what_is_no_text_or_no_plain_number_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        listen(tmp_path, text)
