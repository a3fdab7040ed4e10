"""The chat page in headless Chromium, against the real service."""

import json
import re
import shutil
import time

import pytest
import yaml
from service_process import ServiceProcess, small_model

from lightning_gpt.serving.tenants import new_key

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
KEY, KEY_HASH = new_key()
HASTY_KEY, HASTY_HASH = new_key()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat_page")
    model = str(small_model(folder / "model"))
    tenants = [
        {"name": "reader", "key_hashes": [KEY_HASH]},
        {"name": "hasty", "key_hashes": [HASTY_HASH], "requests_per_minute": 2, "burst": 1},
    ]
    (folder / "tenants.yaml").write_text(yaml.safe_dump({"tenants": tenants}))
    models = [
        {"name": "talker", "chat_template": "plain", "versions": [{"path": model, "threads": 1}]},
        {"name": "writer", "versions": [{"path": model, "threads": 1}]},
    ]
    service = ServiceProcess(folder, {"models": models, "tenants": str(folder / "tenants.yaml")})
    yield service
    service.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, service):
    """open_page(key=..., **context options): the page, its models loaded; no error may show in its console but those of
    refused requests, which the browser itself writes."""
    complaints, contexts = [], []

    def heard(message):
        if message.type in ("error", "warning") and "the server responded with a status" not in message.text:
            complaints.append(message.text)

    def start(key=KEY, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(f"sessionStorage.setItem('key', {json.dumps(json.dumps(key))})")
        page.goto(service.url)
        if key:
            page.wait_for_selector("#model option", state="attached")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []


def send(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")


def answered(page):
    page.wait_for_selector("article:last-of-type .usage")
    return page.inner_text("article:last-of-type .body")


def stand_in(page, pieces):
    """From here on every chat is answered with these pieces: the model's words cannot be chosen, the page's can."""
    lines = [f"data: {json.dumps({'choices': [{'delta': {'content': piece}}]})}\n\n" for piece in pieces]
    end = 'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    answer_with(page, "".join(lines) + end)


def answer_with(page, body):
    page.unroute_all()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))


def test_files_come_with_strict_headers_and_are_not_sent_twice(service):
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", service.port)
    for path, kind in (("/", "text/html"), ("/page/chat.js", "text/javascript"), ("/page/chat.css", "text/css")):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", body), "nothing comes from elsewhere"
        connection.request("GET", path, headers={"if-none-match": answer.headers["etag"]})
        again = connection.getresponse()
        assert (again.status, again.read()) == (304, b"")
    for path in ("/page/", "/page/../page_routes.py", "/page/%2e%2e/config.py", "/page/none.js"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 404 and b"error" in answer.read()


def test_models_are_shown_and_an_answer_grows_as_it_is_written(open_page):
    page = open_page()
    assert page.locator("#model option").all_inner_texts() == ["talker", "writer"]
    info = page.inner_text("#model-info")
    assert re.fullmatch(r"[\d.]+k parameters · 4,096 tokens of context · version v1 · chat", info)
    page.evaluate(
        """() => {
            window.lengths = new Set();
            new MutationObserver(() => window.lengths.add(document.querySelector("#log").textContent.length))
                .observe(document.querySelector("#log"), {childList: true, subtree: true});
        }"""
    )
    send(page, "Tell me")
    assert answered(page)
    assert len(page.evaluate("[...window.lengths]")) > 5
    usage = page.inner_text("article:last-of-type .usage")
    assert re.match(r"256 tokens after \d+ · first in [\d.]+ m?s · [\d.]+ tokens/s · cut at", usage)
    assert page.inner_text("#conversations li") == "Tell me"
    page.reload()
    page.click("#conversations .row")
    assert page.inner_text("article.mine .body") == "Tell me"
    assert page.locator("article.theirs .body").count() == 1


def test_stopping_frees_the_slot(open_page, service):
    page = open_page()
    page.fill("[name=max_tokens]", "4000")
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        send(page, "Go on and on")
        page.wait_for_selector("article.theirs:last-of-type .body:not(:empty)")
        assert page.is_visible("#stop") and not page.is_visible("#send")
        stop()
        answered(page)
        assert "stopped" in page.inner_text("article:last-of-type .usage")
        assert page.is_visible("#send")
        end = time.monotonic() + 10
        while service.metric("lightning_gpt_num_requests_running"):
            assert time.monotonic() < end
            time.sleep(0.1)
        page.keyboard.press("Control+k")
    assert service.metric("lightning_gpt_client_disconnects_total") >= 2


def test_sampling_controls_reach_the_request(open_page):
    page = open_page()
    for name, value in {
        "top_k": "40",
        "max_tokens": "12",
        "seed": "7",
        "stop": "END\n\\n\\n",
        "system": "Be brief",
    }.items():
        page.fill(f"[name={name}]", value)
    for name, value in {"temperature": "0.5", "top_p": "0.9", "frequency_penalty": "0.3"}.items():
        page.locator(f"[name={name}]").fill(value)
    page.check("[name=confidence]")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hello")
    answered(page)
    assert asked.value.post_data_json == {
        "model": "talker",
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 12,
        "seed": 7,
        "frequency_penalty": 0.3,
        "stop": ["END", "\n\n"],
        "logprobs": True,
        "top_logprobs": 5,
        "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert page.locator("article.theirs .token").count() > 3
    assert "% sure" in page.get_attribute("article.theirs .token", "title")
    first = page.inner_text("article.theirs .body")
    page.click("[aria-label='Answer again']")
    page.wait_for_selector("[aria-label='Answer again']")
    assert page.inner_text("article.theirs .body") == first, "the seed holds"
    page.fill("[name=max_tokens]", "99999")
    page.press("[name=max_tokens]", "Tab")
    assert page.input_value("[name=max_tokens]") == "4096"
    page.click("#reset")
    assert page.input_value("[name=seed]") == "" and page.input_value("[name=temperature]") == "0.8"
    page.reload()
    assert page.input_value("[name=system]") == "Be brief"


def test_a_model_without_a_template_continues_a_text_in_place(open_page):
    page = open_page()
    page.select_option("#model", "writer")
    assert page.is_checked("[name=mode][value=text]")
    page.fill("[name=max_tokens]", "8")
    with page.expect_request("**/v1/completions") as asked:
        send(page, "Once upon ")
    page.wait_for_selector("article .usage")
    assert asked.value.post_data_json["prompt"] == "Once upon "
    text = page.locator("article .body").text_content()
    assert text.startswith("Once upon ")
    with page.expect_request("**/v1/completions") as asked:
        page.press("#text", "Enter")  # an empty field: go on
    page.wait_for_selector("article .usage")
    assert asked.value.post_data_json["prompt"] == text
    assert page.locator("article .body").text_content().startswith(text)
    page.check("[name=mode][value=chat]")
    with page.expect_request("**/v1/chat/completions"):
        send(page, "Chat works, too")
    page.wait_for_selector("article.theirs :is(.usage, .failure)")


def test_the_page_needs_no_mouse(open_page):
    page = open_page()
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    answered(page)
    assert page.inner_text("article.mine .body") == "one\ntwo"
    page.keyboard.press("ArrowUp")
    assert page.input_value("#text") == "one\ntwo" and page.is_visible("#editing")
    page.keyboard.press("Escape")
    assert page.input_value("#text") == "" and not page.is_visible("#editing")
    page.keyboard.press("ArrowUp")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    answered(page)
    assert page.locator("article").count() == 2
    assert page.inner_text("article.mine .body") == "one\ntwo!"
    page.keyboard.press("Control+k")
    assert page.locator("article").count() == 0
    page.focus("#theme")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text" and page.input_value("#text") == ""
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
    assert {"new", "theme", "model", "mode", "show-settings", "text", "send", "temperature", "key", "log"} <= seen
    page.focus("#new")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_light_and_dark(open_page):
    page = open_page(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    assert page.get_attribute("#theme", "aria-label") == "Theme: auto"
    page.click("#theme")
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.get_attribute("#theme", "aria-label") == "Theme: light" and page.evaluate(paper) == light
    page.click("#theme")
    assert page.evaluate(paper) == dark
    page.click("#theme")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == light


def test_a_missing_key_is_asked_for_and_forgotten_with_the_tab(open_page):
    page = open_page(key="")
    page.wait_for_selector("#notice:has-text('API key')")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type(KEY)
    page.keyboard.press("Tab")
    page.wait_for_selector("#model option", state="attached")
    assert not page.is_visible("#notice")
    send(page, "Hello")
    answered(page)
    assert KEY in page.evaluate("sessionStorage.getItem('key')")
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")


def test_refusals_are_shown_in_words(open_page):
    page = open_page(key=HASTY_KEY)
    send(page, "one")
    page.wait_for_selector("article.theirs .foot, .failure")
    send(page, "two")
    page.wait_for_selector(".failure")
    assert "Too many requests" in page.inner_text(".failure")
    assert re.search(r"Try again in \d+ s", page.inner_text(".failure"))
    assert page.is_disabled(".failure button")
    page.fill("#key", "lgpt-wrong")
    page.press("#key", "Tab")
    page.wait_for_selector("#notice:has-text('API key')")
    send(page, "three")
    page.wait_for_selector(".failure:has-text('valid API key')")


def test_what_is_written_cannot_become_markup(open_page):
    page = open_page()
    evil = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>[x](javascript:window.broken=1)"
    stand_in(
        page,
        ["**bold** `", evil[:20], evil[20:], "`\n\n```html\n", evil, "\n```\n# ", evil, "\n- ", evil, "\n\n", evil],
    )
    send(page, evil)
    answered(page)
    page.keyboard.press("Control+k")
    page.reload()
    page.click("#conversations .row")
    page.wait_for_selector("article.theirs")
    assert page.evaluate("window.broken") is None
    assert page.locator("#log :is(img, script, a, iframe)").count() == 0
    assert page.inner_text("article.mine .body") == evil
    assert page.inner_text("article.theirs pre") == evil
    assert page.inner_text("article.theirs strong") == "bold"


def test_streams_may_be_cut_anywhere_and_may_fail(open_page):
    page = open_page()
    text = 'data: {"a":"naïve 🙂"}\r\n\r\n: comment\ndata: one\ndata: two\n\ndata: last\n\n'
    found = page.evaluate(
        """async (text) => {
            const { eventData } = await import("/page/api.js");
            const bytes = new TextEncoder().encode(text);
            const all = [];
            for (let size = 1; size < 8; size += 1) {
                const stream = new ReadableStream({ start(to) {
                    for (let at = 0; at < bytes.length; at += size) to.enqueue(bytes.slice(at, at + size));
                    to.close();
                } });
                const events = [];
                for await (const data of eventData(stream)) events.push(data);
                all.push(events);
            }
            return all;
        }""",
        text,
    )
    assert found == [['{"a":"naïve 🙂"}', "one\ntwo", "last"]] * 7
    broken = 'data: {"choices":[{"delta":{"content":"half"}}]}\n\n'
    for rest, words in (
        ('data: {"error":{"message":"the worker died","code":"x"}}\n\n', "the worker died"),
        ("", "The connection ended"),
    ):
        answer_with(page, broken + rest)
        send(page, "Hello")
        page.wait_for_selector(f"article:last-of-type .failure:has-text('{words}')")
        assert page.inner_text("article:last-of-type .body") == "half"


def test_a_small_screen_scrolls_only_downwards(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    stand_in(page, ["```\n", "x" * 300, "\n```\n", "y" * 300, "\n\n1. one\n2. two"])
    send(page, "z" * 300)
    page.wait_for_selector("article.theirs pre")
    widths = "[document.documentElement.scrollWidth, document.getElementById('log').scrollWidth]"
    assert max(page.evaluate(widths)) <= 360
    page.click("#show-settings")
    page.wait_for_selector("#settings [name=temperature]", state="visible")
    assert max(page.evaluate(widths)) <= 360
    page.keyboard.press("Escape")
    page.wait_for_selector("#settings", state="hidden")
    page.click("#show-side")
    page.click("#new")
    page.wait_for_selector(".welcome")
