"""README's picture of the chat page: python -m benchmarks.serving.screenshot http://127.0.0.1:8000 OUT.png.

The same conversation in light and dark beside each other, written by the model that the service at the URL serves; on
the dark side tokens are shaded by the model's confidence. Needs Chromium; with the font Inter installed
(apt-get install fonts-inter) it looks as meant.
"""

import argparse
import io
import shutil
from pathlib import Path

QUESTIONS = ("What is gravity?", "Name three of its effects, as a list.")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
GAP = 16
"""Pixels between the two."""


def shot(browser, args: argparse.Namespace, scheme: str) -> bytes:
    """One side as PNG, after the conversation."""
    size = {"width": args.width, "height": args.height}
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=args.scale)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(args.url)
    if args.key:
        page.fill("#key", args.key)
        page.press("#key", "Tab")
    page.wait_for_selector("#model option", state="attached")
    if args.model:
        page.select_option("#model", args.model)
    for name, value in (("temperature", args.temperature), ("seed", args.seed), ("max_tokens", args.max_tokens)):
        page.locator(f"[name={name}]").fill(str(value))
    page.set_checked("[name=confidence]", scheme == "dark")
    for number, question in enumerate(args.questions):
        page.fill("#text", question)
        page.press("#text", "Enter")
        page.locator("#log :is(.usage, .failure)").nth(number).wait_for()
    if failures := page.locator(".failure").all_inner_texts():
        raise SystemExit(f"screenshot: the service answered: {failures[0]}")
    page.mouse.move(0, 0)
    return page.screenshot()


def main() -> None:
    """Parses, talks, pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", nargs="+", default=QUESTIONS)
    parser.add_argument("--model", help="default: the service's first")
    parser.add_argument("--key", help="API key, where the service wants one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of the picture for one of the page's")
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("screenshot: no Chromium is installed: apt-get install chromium")
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        sides = [Image.open(io.BytesIO(shot(browser, args, scheme))).convert("RGB") for scheme in ("light", "dark")]
        browser.close()
    width, height = sides[0].size
    whole = Image.new("RGBA", (2 * width + GAP, height), (0, 0, 0, 0))
    for number, side in enumerate(sides):
        whole.paste(side, (number * (width + GAP), 0))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole.save(args.out, optimize=True)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
