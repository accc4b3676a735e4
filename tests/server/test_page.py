import re
from pathlib import Path

import pytest
from stand_in import StandIn, client_of, get

import step3.server.page.assets as assets

FOLDER = Path(assets.__file__).parent / "assets"


@pytest.mark.parametrize("path", sorted(assets.ASSETS))
def test_every_asset_is_served_with_its_type_and_may_run_nothing_else(path: str) -> None:
    response = get(StandIn(), path)
    assert response.status_code == 200
    assert response.headers["content-type"] == assets.ASSETS[path].content_type
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.content


def test_the_pages_are_the_chat_the_planner_and_the_pipeline() -> None:
    assert "<title>Step3</title>" in get(StandIn(), "/").text
    assert "<title>Step3 planner</title>" in get(StandIn(), "/planner").text
    assert "<title>Step3 pipeline</title>" in get(StandIn(), "/pipeline").text


def test_what_a_browser_has_is_not_sent_again() -> None:
    etag = get(StandIn(), "/page/chat.js").headers["etag"]
    again = get(StandIn(), "/page/chat.js", {"if-none-match": f'W/"other", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert get(StandIn(), "/page/chat.js", {"if-none-match": '"other"'}).status_code == 200


def test_head_tells_what_get_would() -> None:
    import asyncio

    async def head() -> tuple[int, bytes, str]:
        async with client_of(StandIn()) as client:
            response = await client.head("/page/chat.css")
            return response.status_code, response.content, response.headers["content-length"]

    assert asyncio.run(head()) == (200, b"", str(len(assets.ASSETS["/page/chat.css"].content)))


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/chat.html",
        "/page/chat.js/",
    ],
)
def test_nothing_but_assets_is_served(path: str) -> None:
    assert get(StandIn(), path).status_code in (307, 404)


def test_pages_need_no_key_and_what_they_ask_for_does() -> None:
    keys = {"api_keys": ("secret",)}
    for path in ("/", "/planner", "/pipeline", "/page/chat.js"):
        assert get(StandIn(), path, **keys).status_code == 200
    for path in ("/v1/models", "/planner/catalogue"):
        assert get(StandIn(), path, **keys).status_code == 401


def test_all_that_pages_load_is_in_the_package() -> None:
    known = {path.lstrip("/") for path in assets.ASSETS}
    for file in FOLDER.glob("*.html"):
        text = file.read_text()
        loaded = re.findall(r'(?:src|href)="([^"#]+)"', text)
        assert loaded
        assert {name for name in loaded if name not in (".", "planner", "pipeline")} <= known
        # What the policy forbids would be dead.
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text)
    for file in FOLDER.glob("*.js"):
        for name in re.findall(r'from "\./([^"]+)"', file.read_text()):
            assert f"page/{name}" in known, (file.name, name)


def test_no_script_makes_markup_of_text() -> None:
    for file in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.read_text()
        ), file.name


def test_nothing_is_loaded_from_elsewhere() -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            urls = re.findall(r"https?://[\w.-]+", file.read_text())
            assert set(urls) <= {"http://www.w3.org"}, file.name
