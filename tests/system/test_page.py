"""The pages in a real browser: headless Chromium, in front of scripted answers and of the bundled model."""

import asyncio
import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from stand_in import StandIn, answers

from step3.server.app import make_app
from step3.server.config import ServerConfig

pytest.importorskip("selenium", reason="selenium is not installed: pip install 'step3[test]'")
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no Chromium here: apt-get install chromium chromium-driver"
)
PATIENCE = 90
"""Seconds after which something that should happen did not."""
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
SHAPES = Path(__file__).parents[2] / "src/step3/server/page/assets/example_shapes.png"
TOOL_CALL = (
    "<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>"
    '<steptml:invoke name="weather">\n<steptml:parameter name="city">Tokyo</steptml:parameter>\n'
    "</steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>"
)


LANE = {"attention": 0.5, "wire": 0.2, "waiting": 0.1, "ffn": 0.2, "steps": 10, "calls": 60, "tokens": 160}
INSTANCE = {"instance": 0, "state": "ready", "epoch": 1, "told_seconds": 5.0, "shard": 0, "idle_seconds": 0.1}
SERVED = {"seconds": 0.9, "products": 50, "calls": 60, "tokens": 160}
SPAN = {"ph": "X", "pid": 0, "tid": 0, "name": "attention", "ts": 5.0, "dur": 2000.0}
DEPLOYMENT = {
    "topology": "1A1F",
    "attention": [
        {**INSTANCE, "lanes": [LANE, LANE], "running": 16, "waiting": 2, "kv_cache_usage": 0.25, "link": {}}
    ],
    "ffn": [{**INSTANCE, **SERVED, "state": "draining"}],
    "restarts": {},
    "moved_requests": 0,
    "parked_requests": 0,
    "limit": "",
    "traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "attention 0"}},
        {**SPAN, "args": {"layer": 1, "tokens": 16}},
        {**SPAN, "name": "wire", "tid": 1, "ts": 2005.0, "args": {"layer": 1, "tokens": 16}},
    ],
}
"""Both what a deployment is and what a trace of it holds; the same at every look."""


class Scripted:
    """The application in front of a scripted engine, on a port of its own."""

    def __init__(self, **options: Any) -> None:
        self.engine = StandIn(chat=answers((0, "hello", "stop")), statistics=[{}], cluster=[DEPLOYMENT])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        app = make_app(ServerConfig(**options), self.engine)  # type: ignore[arg-type]
        self._server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._loop.run_until_complete(self._server.serve([self._socket]))

    def will_answer(self, *pieces: Any) -> None:
        """Each piece a text, or an asyncio.Event that is waited for; then the end."""
        script: list[Any] = [{"in_reasoning": True}]
        for piece in pieces:
            script.append([7, 3, [[0, piece, 1, 0, None, None, None]]] if isinstance(piece, str) else piece)
        self.engine.scripts["chat"] = [*script, [7, 3, [[0, "", 1, 0, "stop", None, None]]]]

    def release(self, event: asyncio.Event) -> None:
        self._loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(PATIENCE)


class Browser:
    """Chromium, with the words that the tests need."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in [*FLAGS.split(), f"--user-data-dir={folder}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))

    def open(self, url: str, width: int = 1200, height: int = 850, scheme: str = "light") -> None:
        """A page as a newcomer sees it."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.get(url)
        self.run("localStorage.clear(); sessionStorage.clear()")
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The last element, once it is there and can be seen."""
        return self.until(lambda: [found for found in self.all(selector)[-1:] if found.is_displayed()])[0]

    def until(self, condition: Callable[[], Any]) -> Any:
        # Pages draw again while a test looks at them.
        ignored = [StaleElementReferenceException]
        return WebDriverWait(self.driver, PATIENCE, 0.05, ignored).until(lambda _: condition())

    def ask(self, text: str) -> None:
        self.one("#question").send_keys(text, Keys.ENTER)

    def answer(self) -> WebElement:
        """The last answer, once it is whole."""
        self.until(lambda: self.all(".assistant") and not self.all('[aria-busy="true"]'))
        return self.one(".assistant")

    def text(self, selector: str) -> str:
        return self.until(lambda: [one.text for one in self.all(selector)[-1:] if one.is_displayed()])[0]

    def complaints(self) -> list[str]:
        """What the console says, but for statuses that a test asked for."""
        log = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in log if "Failed to load resource" not in message]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    one = Scripted()
    yield one
    one.close()


@pytest.fixture(scope="module")
def bundled() -> Iterator[str]:
    """The server as `make serve` starts it, but on any port."""
    command = [sys.executable, "-c", "from step3.cli import main; main()", "serve", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "stops" in line:
            break
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found, said
    yield f"{found[0]}/"
    process.terminate()
    process.wait(PATIENCE)


def test_the_bundled_model_answers_about_an_attached_picture(browser: Browser, bundled: str) -> None:
    browser.open(bundled)
    browser.until(lambda: browser.text("#model") == "step3-nano")
    browser.run("document.querySelector('input[type=file]').hidden = false")
    browser.one("input[type=file]").send_keys(str(SHAPES))
    browser.one(".thumbnail img")
    browser.ask("Describe the picture.")
    answer = browser.answer()
    assert browser.one(".user .picture img").is_displayed()
    assert len(answer.find_element(By.CSS_SELECTOR, ".prose").text.split()) > 3
    assert "Thought for" in answer.text
    stats = answer.find_element(By.CSS_SELECTOR, ".stats").text
    assert re.search(r"(ms|s) to first token.* tokens/s.* tokens", stats.replace("\n", " ")), stats
    assert not browser.all(".thumbnail")


def test_every_example_is_answered_with_one_click(browser: Browser, bundled: str) -> None:
    browser.open(bundled)
    count = len(browser.until(lambda: browser.all(".example")))
    for place in range(count):
        browser.all(".example")[place].click()
        answer = browser.answer()
        assert not browser.all(".fault[role=alert]:not([hidden])")
        shown = answer.find_elements(By.CSS_SELECTOR, ".prose > *, .call")
        assert shown, place
        browser.one("#fresh").click()
    assert browser.text("#welcome h1")


def test_an_answer_shows_while_it_comes_with_its_thinking_folded(
    browser: Browser, scripted: Scripted
) -> None:
    held = asyncio.Event()
    scripted.will_answer("let me see\n</think>\n", "one ", held, "two")
    browser.open(scripted.url)
    browser.ask("count")
    browser.until(lambda: browser.all(".prose") and browser.text(".prose") == "one")
    assert browser.all('.assistant[aria-busy="true"]')
    assert browser.one("#send").get_attribute("aria-label") == "Stop the answer"
    scripted.release(held)
    answer = browser.answer()
    assert answer.find_element(By.CSS_SELECTOR, ".prose").text == "one two"
    thought = answer.find_element(By.CSS_SELECTOR, ".thought")
    assert not thought.is_displayed()
    answer.find_element(By.CSS_SELECTOR, ".thinking summary").click()
    assert thought.text == "let me see"


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_ends_the_answer_here_and_in_the_server(browser: Browser, scripted: Scripted, how: str) -> None:
    scripted.will_answer("x\n</think>\n", "never ", asyncio.Event(), "ends")
    browser.open(scripted.url)
    left = len(scripted.engine.left)
    browser.ask("go")
    browser.until(lambda: browser.all(".prose") and "never" in browser.text(".prose"))
    if how == "button":
        browser.one("#send").click()
    else:
        browser.one("body").send_keys(Keys.ESCAPE)
    answer = browser.answer()
    assert "Stopped." in answer.text
    assert answer.find_element(By.CSS_SELECTOR, ".prose").text == "never"
    browser.until(lambda: len(scripted.engine.left) == left + 1)
    scripted.will_answer("</think>\nfine")
    browser.ask("and now?")
    assert browser.answer().find_element(By.CSS_SELECTOR, ".prose").text == "fine"


def test_questions_are_edited_and_answers_made_again(browser: Browser, scripted: Scripted) -> None:
    scripted.will_answer("</think>\nfirst")
    browser.open(scripted.url)
    browser.ask("one")
    browser.answer()
    scripted.will_answer("</think>\nsecond")
    browser.one('[aria-label="Answer again"]').click()
    browser.until(lambda: browser.text(".prose") == "second")
    assert len(browser.all(".turn")) == 2
    browser.one("#question").send_keys(Keys.ARROW_UP)
    assert browser.one("#question").get_attribute("value") == "one"
    assert not browser.all(".turn")
    scripted.will_answer("</think>\nthird")
    browser.ask(" more")
    browser.answer()
    assert scripted.engine.asked[-1][1]["messages"][-1]["content"] == "one more"


def test_a_reload_keeps_the_conversation_and_a_new_chat_forgets_it(
    browser: Browser, scripted: Scripted
) -> None:
    scripted.will_answer("</think>\nkept")
    browser.open(scripted.url)
    browser.ask("one")
    browser.answer()
    browser.driver.refresh()
    assert browser.text(".prose") == "kept"
    browser.one("#fresh").click()
    assert not browser.all(".turn")
    browser.driver.refresh()
    assert browser.one("#welcome")


def test_what_a_model_writes_is_text_and_only_some_markdown(browser: Browser, scripted: Scripted) -> None:
    hostile = (
        "</think>\n<img src=x onerror=\"document.title='owned'\"> **bold** and `code`\n\n"
        "[click](javascript:document.title='owned') [fine](https://example.org/a)\n\n"
        "- one\n- two\n\n```html\n<script>document.title='owned'</script>\n```\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    scripted.will_answer(*(hostile[start : start + 7] for start in range(0, len(hostile), 7)))
    browser.open(scripted.url)
    browser.ask("<b>hi</b>")
    prose = browser.answer().find_element(By.CSS_SELECTOR, ".prose")
    found = {
        name: prose.find_elements(By.CSS_SELECTOR, name)
        for name in ("img", "script", "strong", "li", "td", "a")
    }
    assert found["img"] == found["script"] == []
    assert [one.text for one in found["strong"]] == ["bold"]
    assert [one.text for one in found["li"]] == ["one", "two"]
    assert [one.text for one in found["td"]] == ["1", "2"]
    assert [one.get_attribute("href") for one in found["a"]] == ["https://example.org/a"]
    assert prose.find_element(By.CSS_SELECTOR, "pre").text == "<script>document.title='owned'</script>"
    assert "<img src=x" in prose.text
    assert browser.text(".bubble") == "<b>hi</b>"
    assert browser.driver.title == "Step3"


def test_text_cannot_become_markup_whoever_tries(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    tried = "try { document.body.innerHTML = '<p>x'; return 'made' } catch (error) { return error.name }"
    assert browser.run(tried) == "TypeError"
    browser.complaints()


def test_a_tool_call_is_shown_and_its_result_goes_back(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    browser.one("#open-settings").click()
    tools = browser.one("[name=tools]")
    tools.send_keys('[{"type": "function", "function": {"name": ')
    assert "not valid JSON" in browser.text("#settings-fault")
    tools.send_keys(
        '"weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]'
    )
    browser.until(lambda: not browser.one("#settings").find_element(By.ID, "settings-fault").is_displayed())
    browser.one('[name="temperature"]').send_keys("0.5")
    browser.one(".drawer .primary").click()
    assert browser.text("#offer .chip") == "weather"
    scripted.will_answer("</think>\n", TOOL_CALL)
    browser.ask("Weather in Tokyo?")
    assert browser.answer().find_element(By.CSS_SELECTOR, ".call dl").text.split() == ["city", "Tokyo"]
    assert scripted.engine.asked[-1][1]["params"]["temperature"] == 0.5
    scripted.will_answer("</think>\nIt rains.")
    browser.one(".result-form input").send_keys("rain", Keys.ENTER)
    browser.until(lambda: browser.all(".prose") and "It rains." in browser.text(".prose"))
    sent = scripted.engine.asked[-1][1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Tokyo"}}
    assert (sent[2]["content"], bool(sent[2]["tool_call_id"])) == ("rain", True)


@pytest.mark.parametrize(
    ("field", "value", "told"), [("temperature", "hot", "Temperature"), ("seed", "1.5", "whole")]
)
def test_a_setting_that_cannot_be_is_named(
    browser: Browser, scripted: Scripted, field: str, value: str, told: str
) -> None:
    browser.open(scripted.url)
    browser.one("#open-settings").click()
    browser.one(f"[name={field}]").send_keys(value)
    assert told in browser.text("#settings-fault")
    browser.one("#close-settings").click()
    asked = len(scripted.engine.asked)
    browser.ask("hi")
    assert told in browser.text("#settings-fault")
    assert len(scripted.engine.asked) == asked


def test_pictures_are_dropped_and_pasted(browser: Browser, scripted: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), "red").save(path)
    scripted.will_answer("</think>\nred")
    browser.open(scripted.url)
    give = """
        const bytes = Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], arguments[2], {type: arguments[3]}));
        const kind = arguments[1];
        const event = kind === "paste"
          ? new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true})
          : new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
        document.querySelector("#question").dispatchEvent(event);"""
    content = base64.b64encode(path.read_bytes()).decode()
    browser.run(give, content, "drop", "red.png", "image/png")
    browser.until(lambda: len(browser.all(".thumbnail")) == 1)
    browser.run(give, content, "paste", "red.png", "image/png")
    browser.until(lambda: len(browser.all(".thumbnail")) == 2)
    browser.run(give, base64.b64encode(b"no picture").decode(), "drop", "broken.png", "image/png")
    assert "not a picture" in browser.text("#toast")
    browser.run(give, content, "drop", "text.txt", "text/plain")
    browser.until(lambda: "Only pictures" in browser.text("#toast"))
    browser.one('[aria-label="Remove picture 2"]').click()
    browser.ask("colour?")
    browser.answer()
    parts = scripted.engine.asked[-1][1]["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["image", "text"]
    assert parts[0]["image"] == path.read_bytes()


def test_errors_are_told_and_can_be_tried_again(browser: Browser, scripted: Scripted) -> None:
    from step3.server.engine_client import EngineFailure

    scripted.engine.scripts["chat"] = [EngineFailure("overloaded", "too many wait")]
    browser.open(scripted.url)
    browser.ask("hi")
    assert "too many wait" in browser.text(".assistant .fault")
    scripted.will_answer("</think>\nfine")
    browser.one(".fault .button").click()
    browser.until(lambda: browser.all(".prose") and browser.text(".prose") == "fine")
    scripted.engine.scripts["chat"] = [
        *answers((0, "half", None), in_reasoning=False),
        EngineFailure("internal", "the engine ended"),
    ]
    browser.ask("more")
    assert "the engine ended" in browser.text(".assistant .fault")
    assert browser.text(".prose") == "half"


def test_a_server_with_a_key_is_usable_once_the_key_is_given(browser: Browser) -> None:
    guarded = Scripted(api_keys=("open sesame",))
    try:
        browser.open(guarded.url)
        assert "API key" in browser.text("#key-gate")
        browser.one("#key-gate input").send_keys("open sesame", Keys.ENTER)
        browser.until(lambda: browser.text("#model") == "step3")
        guarded.will_answer("</think>\nwelcome")
        browser.ask("hi")
        browser.answer()
        assert browser.text(".prose") == "welcome"
    finally:
        guarded.close()


CONTRASTS = """
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (place) => {
    for (let at = place; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return luminance(colour);
    }
    return 1;
  };
  const found = [];
  for (const place of document.querySelectorAll("body *")) {
    const isText = [...place.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    if (!isText || !place.checkVisibility({opacityProperty: true})) continue;
    if (place.disabled || place.closest("svg, .skip")) continue;
    const [one, other] = [luminance(getComputedStyle(place).color), ground(place)];
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), place.outerHTML.slice(0, 90)]);
  }
  return [ground(document.body), found];"""
UNNAMED = """
  return [...document.querySelectorAll("button, input:not([type=file]), textarea, select, img, meter")]
    .filter((one) => !(one.getAttribute("aria-label") || one.labels?.length || one.textContent.trim()
      || one.hasAttribute("alt")))
    .map((one) => one.outerHTML.slice(0, 90));"""


READY = {"planner": "#choices tbody tr", "pipeline": ".instance"}
"""What shows that a page has all that it asked for."""


@pytest.mark.parametrize(("scheme", "page"), [(s, p) for s in ("light", "dark") for p in ("", *READY)])
def test_both_colour_schemes_can_be_read_and_everything_has_a_name(
    browser: Browser, scripted: Scripted, scheme: str, page: str
) -> None:
    scripted.will_answer("hm\n</think>\nSome `code`, and\n\n```py\nx = 1\n```\n")
    browser.open(scripted.url + page, scheme=scheme)
    if page:
        browser.until(lambda: browser.all(READY[page]))
    else:
        browser.ask("hi")
        browser.answer()
    ground, found = browser.run(CONTRASTS)
    assert (ground < 0.1) == (scheme == "dark")
    assert len(found) > 5
    assert [what for ratio, what in found if ratio < 4.5] == []
    assert browser.run(UNNAMED) == []


def test_the_theme_can_be_chosen_and_stays(browser: Browser, scripted: Scripted) -> None:
    browser.open(scripted.url)
    theme = browser.one("#theme")
    while theme.get_attribute("aria-label") != "Colours: dark":
        theme.click()
    browser.driver.refresh()
    assert browser.run(CONTRASTS)[0] < 0.1


@pytest.mark.parametrize("page", ["", *READY])
def test_a_phone_shows_everything_without_scrolling_sideways(
    browser: Browser, scripted: Scripted, page: str
) -> None:
    scripted.will_answer("</think>\n", "```\n" + "x" * 300 + "\n```\n", "y" * 300)
    browser.open(scripted.url + page, width=360, height=700)
    if page:
        browser.until(lambda: browser.all(READY[page]))
    else:
        browser.ask("z" * 200)
        browser.answer()
        send = browser.one("#send").rect
        assert send["x"] + send["width"] <= 360
        assert send["width"] >= 36
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    assert all(one.rect["x"] + one.rect["width"] <= 360 for one in browser.all(".bar > *"))


def test_the_pipeline_shows_lanes_in_colours_and_what_limits_them(
    browser: Browser, scripted: Scripted
) -> None:
    browser.open(f"{scripted.url}pipeline")
    assert browser.text("#topology") == "1A1F"
    assert browser.text("#limit") == "Nothing is being computed"
    [attention, ffn] = browser.until(lambda: [one.text for one in browser.all(".instance")])
    assert "16 running, 2 waiting, 25 % of the cache" in attention
    assert "lane 1" in attention
    assert "draining" in ffn
    colours = """
      const canvas = document.getElementById("gantt"), pen = canvas.getContext("2d"), seen = new Set();
      const middle = pen.getImageData(0, 13 * devicePixelRatio, canvas.width, 1).data;
      for (let at = 0; at < middle.length; at += 4) seen.add([...middle.slice(at, at + 3)].join());
      return [...seen]"""
    # Attention's and the wire's, as the style sheet has them for light pages.
    browser.until(lambda: {"74,95,208", "224,148,47"} <= set(browser.run(colours)))
    assert "Lanes and FFN instances over 4 ms" in browser.one("#gantt").get_attribute("aria-label")
    asked = len(scripted.engine.asked)
    browser.until(lambda: len(scripted.engine.asked) >= asked + 6)


def test_a_paused_pipeline_asks_for_nothing(browser: Browser, scripted: Scripted) -> None:
    browser.open(f"{scripted.url}pipeline")
    browser.until(lambda: browser.all(".instance"))
    browser.one("#pause").click()
    assert browser.one("#pause").text == "Go on"
    # What was under way ends; then the page is still.
    found = []
    browser.until(lambda: found.append(len(scripted.engine.asked)) or found[-1:] * 50 == found[-50:])
    browser.one("#pause").click()
    browser.until(lambda: len(scripted.engine.asked) > found[-1])


def test_a_server_of_one_process_says_how_to_have_a_pipeline(browser: Browser, bundled: str) -> None:
    browser.open(f"{bundled}pipeline")
    assert "There is no pipeline here" in browser.text("#fault")
    assert "--ffn-instances 1" in browser.text("#fault code")
    assert not browser.one("#fault").get_attribute("class").endswith("fault")


def test_the_planner_follows_its_sliders(browser: Browser, scripted: Scripted) -> None:
    browser.open(f"{scripted.url}planner")
    browser.until(lambda: browser.all("#context-chart .line") and browser.all("#speed-chart .line"))
    first = browser.text(".headline .cost")

    def move(selector: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        browser.run(script, browser.one(selector), value)

    move(".price[data-card=H20] input[type=range]", 2.4)
    dearer = browser.until(lambda: (text := browser.text(".headline .cost")) != first and text)
    assert float(dearer[1:]) > float(first[1:])
    browser.one("#reset").click()
    browser.until(lambda: browser.text(".headline .cost") == first)
    move("#context", 10)
    longer = browser.until(lambda: (text := browser.text(".headline .cost")) != first and text)
    assert float(longer[1:]) > float(first[1:])
    assert "context=32768" in browser.driver.current_url
    assert "--context 32768" in browser.text("#commands")
    move("#target", 0)
    browser.until(
        lambda: (
            browser.text("#target-shown") == "5 ms"
            and "stale" not in browser.one("#best").get_attribute("class")
        )
    )
    assert browser.text("#best")
