"""TLS between hosts: who has no certificate of the deployment's authority is no member."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from certificates import make_files

from step3.cluster import control
from step3.cluster.control import Channel, ControlError
from step3.cluster.tls import TLSFiles
from step3.errors import Step3Error

SECRET = b"s" * 32


def ask(listening: TLSFiles, connecting: TLSFiles | None) -> Any:
    """What comes back when something is said to a listening side."""

    async def echo(channel: Channel) -> None:
        channel.send(await channel.receive())
        await channel.flush()

    async def run() -> Any:
        server, address = await control.listen("127.0.0.1:0", SECRET, echo, listening.listening())
        try:
            tls = None if connecting is None else connecting.connecting()
            channel = await control.connect(address, SECRET, tls)
            channel.send({"said": 7})
            return await channel.receive()
        finally:
            server.close()

    return asyncio.run(run())


def test_members_of_one_authority_talk(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    assert ask(files, files) == {"said": 7}


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    files, others = make_files(tmp_path), make_files(tmp_path, "other")
    with pytest.raises(ControlError, match=r"nobody answers|refused|is gone"):
        ask(files, others)
    liar = TLSFiles(others.cert, others.key, files.ca)
    with pytest.raises(ControlError, match=r"nobody answers|refused|is gone"):
        ask(files, liar)


def test_who_speaks_no_tls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HANDSHAKE_SECONDS", 0.5)
    with pytest.raises(ControlError, match="is TLS on at both or at neither"):
        ask(make_files(tmp_path), None)


def test_there_are_three_files_or_none(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    assert TLSFiles.of(None, None, None) is None
    assert TLSFiles.of(files.cert, files.key, files.ca) == files
    with pytest.raises(Step3Error, match="--cluster-tls-ca"):
        TLSFiles.of(files.cert, files.key, None)
    with pytest.raises(Step3Error, match="cannot use"):
        TLSFiles.of(files.cert, str(tmp_path / "nowhere"), files.ca)
