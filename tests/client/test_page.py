"""The gateway's page: its files and the engine's events over HTTP, and the whole of it in a headless Chromium."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx2 as httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from support.http_gateway import gateway
from support.scripted_service import EOS, Responses, ScriptedService
from support.service import Service, serve

from pagewire.client.gateway.pages import number_fields
from pagewire.v1 import generation_pb2 as pb
from pagewire.v1 import inference_pb2

LIMIT_S = 30
PARTS = ["page.js", "page.css", "icon.svg", "fields.json", "chat.js"]
TOOLS = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'


@pytest.fixture(scope="module")
def served() -> Iterator[Service]:
    """A service that answers at once, with text, and its gateway."""
    with serve(model="smollm2-135m", device="sim", sim_step_us=2000, openai="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def base(served: Service) -> str:
    url: str = served.said["openai_url"]
    return url.removesuffix("/v1")


# Over HTTP


@pytest.mark.model
@pytest.mark.parametrize("path", ["", *[f"page/{name}" for name in PARTS]])
def test_files_come_with_their_headers(base: str, path: str) -> None:
    answer = httpx.get(f"{base}/{path}")
    assert answer.status_code == 200
    assert answer.content
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(f"{base}/{path}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.model
@pytest.mark.parametrize("path", ["page/nothing", "page/..%2fapp.py", "page/%2e%2e/app.py", "page/"])
def test_there_are_no_other_files(base: str, path: str) -> None:
    assert httpx.get(f"{base}/{path}").status_code == 404


def test_the_fields_are_a_body_s_numbers() -> None:
    fields = {str(each["name"]): each["is_whole"] for each in number_fields()}
    assert fields.items() >= {"temperature": False, "top_k": True, "seed": True, "max_tokens": True}.items()
    assert "stream" not in fields


def events_of(answer: httpx.Response, num_events: int) -> list[tuple[str, dict[str, Any]]]:
    found, kind = [], ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        if line.startswith("data: "):
            found.append((kind, json.loads(line.removeprefix("data: "))))
        if len(found) == num_events:
            break
    return found


@pytest.mark.model
def test_the_engine_s_events(served: Service) -> None:
    with (
        gateway(served.address, served.admin_address) as address,
        httpx.stream("GET", f"{address}/engine/events", timeout=LIMIT_S) as first,
        httpx.stream("GET", f"{address}/engine/events", timeout=LIMIT_S) as second,
    ):
        for answer in (first, second):
            events = dict(events_of(answer, 2))
            assert events["load"]["state"] == "SERVICE_STATE_READY"
            assert isinstance(events["load"]["output_tokens"], int)
            blocks = events["blocks"]
            assert len(base64.b64decode(blocks["uses"])) == blocks["total_blocks"] > 0


def test_without_an_admin_address_there_are_none(service: ScriptedService) -> None:
    with gateway(service.address) as address:
        assert httpx.get(f"{address}/engine/events").status_code == 204


def test_an_engine_that_does_not_answer_is_an_error(service: ScriptedService) -> None:
    with gateway(service.address, "127.0.0.1:1") as address:
        answer = httpx.get(f"{address}/engine/events", timeout=LIMIT_S)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"]


# In a browser


class Page:
    """The page as a person has it before them."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, base: str, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(f"{base}/")
        self.until(lambda: self.find("#model option"))

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.until(lambda: self.find(selector))[-1]

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, LIMIT_S).until(lambda _: condition())

    def field(self, name: str, value: str) -> None:
        self.driver.execute_script("document.getElementById('settings').open = true")
        self.one(f"[name={name}]").send_keys(value)

    def say(self, text: str) -> None:
        self.one("#prompt").send_keys(text, Keys.ENTER)

    def js(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def assert_no_complaint(self) -> None:
        assert [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"] == []


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    browser, its_driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or its_driver is None:
        pytest.skip("no Chromium: Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(its_driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def page(driver: webdriver.Chrome) -> Iterator[Page]:
    shown = Page(driver)
    yield shown
    driver.get("about:blank")
    driver.get_log("browser")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_chat_streams_and_the_engine_moves(page: Page, base: str, width: int, scheme: str) -> None:
    page.open(base, width, 844 if width == 390 else 900, scheme)
    page.until(lambda: page.one("#state").text == "ready")
    before = page.until(lambda: page.one("#map").get_attribute("aria-label").startswith("Map of "))
    before = page.one("#map").get_attribute("aria-label")
    page.field("max_tokens", "700")
    page.say(f"Hello, {width} {scheme}")
    text = page.one(".message.assistant .text")
    partial = page.until(lambda: text.text)
    assert page.one("#stop").is_enabled()
    foot = page.one(".message.assistant .foot").text
    assert "700 tokens" in foot
    assert "cut at its length" in foot
    assert len(text.text) > len(partial)
    page.until(lambda: page.one("#map").get_attribute("aria-label") != before)
    assert page.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    dark = page.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in dark.strip("rgb()").split(",")[:3]) < 384) == (scheme == "dark")
    page.assert_no_complaint()


@pytest.mark.slow
@pytest.mark.model
def test_stop_and_again_and_clear(page: Page, base: str) -> None:
    page.open(base)
    page.field("max_tokens", "2000")
    page.say("Hello")
    page.until(lambda: page.one(".message.assistant .text").text)
    page.one("#prompt").send_keys(Keys.ESCAPE)
    assert page.one(".message.assistant .foot").text == "Stopped."
    page.one("#again").click()
    page.until(lambda: page.one("#stop").is_enabled() and not page.find(".foot"))
    page.one("#stop").click()
    page.one(".message.assistant .foot")
    page.one("#clear").click()
    page.until(lambda: not page.find(".message"))
    page.assert_no_complaint()


def says(*parts: pb.Part) -> Callable[..., Responses]:
    def script(_request: inference_pb2.StreamGenerateRequest, _context: grpc.ServicerContext) -> Responses:
        yield inference_pb2.StreamGenerateResponse(started=pb.Started(request_id="x", seed=1, prompt_tokens=3))
        for part in parts:
            yield inference_pb2.StreamGenerateResponse(delta=pb.Delta(tokens=[pb.Token(id=1)], parts=[part]))
        finished = pb.Finished(reason=pb.FINISH_REASON_EOS, stop_token_id=EOS)
        yield inference_pb2.StreamGenerateResponse(finished=finished)
        yield inference_pb2.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=3, completion_tokens=4))

    return script


@pytest.mark.slow
def test_reasoning_is_folded_and_a_tool_s_result_goes_on(page: Page, service: ScriptedService) -> None:
    call = pb.ToolCallPart(index=0, id="abcdefghi", name="weather", arguments='{"city": "Köln"}', is_complete=True)
    service.streams = [
        says(pb.Part(reasoning="Let me see"), pb.Part(content="<b>bold</b>"), pb.Part(tool_call=call)),
        says(pb.Part(content="It rains.")),
    ]
    with gateway(service.address) as address:
        page.open(address)
        assert "--admin HOST:PORT" in page.one("#engine-note").text
        page.driver.execute_script("document.getElementById('settings').open = true")
        page.one("#tools").send_keys(TOOLS)
        page.say("The weather?")
        assert page.one(".call code").text == "weather"
        assert json.loads(page.one(".call pre").text) == {"city": "Köln"}
        assert page.one(".assistant .text").text == "<b>bold</b>", "a model's text is text"
        reasoning = page.one("details.reasoning")
        assert reasoning.get_attribute("open") is None
        assert "Let me see" in (reasoning.get_attribute("textContent") or "")
        page.one("#tools").send_keys("?")
        page.one(".call textarea").send_keys("12 °C, rain", Keys.ENTER)
        assert "Tools are not JSON" in page.one(".message.assistant .trouble").text
        page.one("#tools").send_keys(Keys.BACKSPACE)
        page.one(".call textarea").send_keys(Keys.ENTER)
        page.until(lambda: page.find(".message.assistant")[-1].text.count("It rains."))
        first, second = service.requests(inference_pb2.StreamGenerateRequest)
        assert first.generation.prompt.chat.tools[0].name == "weather"
        messages = second.generation.prompt.chat.messages
        assert [message.role for message in messages][1:] == [pb.CHAT_ROLE_ASSISTANT, pb.CHAT_ROLE_TOOL]
        assert (messages[1].tool_calls[0].id, messages[2].tool_call_id) == ("abcdefghi", "abcdefghi")
        assert (messages[1].reasoning_content, messages[2].content) == ("Let me see", "12 °C, rain")
        page.assert_no_complaint()
