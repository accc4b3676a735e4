from collections.abc import Iterator

import pytest
from wire_world import World

from step3.wire.native import open_library, why_not


@pytest.fixture(params=["shm", "shm, nothing compiled", "tcp"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    if "nothing compiled" in request.param:
        for user in ("codec", "endpoint", "ffn", "waiter"):
            monkeypatch.setattr(f"step3.wire.{user}.open_library", lambda: None)
    elif request.param == "shm" and open_library() is None:
        pytest.skip(why_not())
    made = World(request.param.split(",")[0])
    yield made
    made.close()
