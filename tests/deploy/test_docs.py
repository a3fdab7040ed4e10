"""deploy/docs/: the site is built without a warning, in both languages, and the reference says what docstrings say."""

import importlib.util
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "deploy" / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built once, without what takes half of the time and can hide no warning."""
    return built(tmp_path_factory.mktemp("site"), {"DOCS_FULL": "false"})


def built(folder: Path, settings: dict[str, str]) -> Path:
    """The site; a package that cannot be imported stands for torch, which must not be needed."""
    blocked = folder / "blocked" / "torch"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise RuntimeError('the reference imports torch')\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(DOCS / "mkdocs.yml"), "--site-dir", str(folder / "site")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(blocked.parent), "NO_MKDOCS_2_WARNING": "1", **settings}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def words(page: Path) -> str:
    """What a reader sees, spaces made single."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", text)).split())


def test_every_chapter_is_there_in_both_languages(site):
    chapters = sorted(path.parent.name for path in (ROOT / "experiments").glob("[0-9]*/README.md"))
    assert len(chapters) == 13
    for chapter in chapters:
        assert "In the code" in words(site / "experiments" / chapter / "index.html"), chapter
        assert "在代码里" in words(site / "zh" / "experiments" / chapter / "index.html"), chapter


def test_the_switch_leads_to_the_same_page_in_the_other_language(site):
    for here, there in (("", "zh/"), ("zh/", "")):
        page = site / f"{here}experiments/05_architecture/index.html"
        language = "zh" if there else "en"
        found = re.search(rf'<a href="([^"]*)" hreflang="{language}"', page.read_text(encoding="utf-8"))
        assert found
        assert (
            page.parent / found[1] / "index.html"
        ).resolve() == site / f"{there}experiments/05_architecture/index.html"
    assert '<html lang="zh"' in (site / "zh/experiments/05_architecture/index.html").read_text(encoding="utf-8")


def test_the_reference_says_what_docstrings_say(site):
    page = site / "reference" / "nn" / "index.html"
    text = words(page)
    assert "Shape and parts of a decoder-only transformer. The defaults are GPT-2 124M (Radford et al., 2019)." in text
    assert "Number of transformer blocks (L)." in text
    assert "a combination that cannot work; the message names field, value and mend." in text
    assert 'id="lightning_gpt.nn.attention.CausalSelfAttention.forward"' in page.read_text(encoding="utf-8")
    folders = {path.parent for path in (ROOT / "lightning_gpt").glob("*/*.py")}
    assert all((site / "reference" / folder.name / "index.html").is_file() for folder in folders)


def test_chapters_and_reference_lead_to_each_other(site):
    chapter = (site / "experiments/05_architecture/index.html").read_text(encoding="utf-8")
    assert "../../reference/nn/#lightning_gpt.nn.attention.CausalSelfAttention.forward" in chapter
    reference = (site / "reference/nn/index.html").read_text(encoding="utf-8")
    assert 'href="../../experiments/05_architecture/"' in reference


def test_links_and_figures_of_the_site_exist(site):
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in set(re.findall(r'(?:href|src)="?([^"\s>#]+)', page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / unescape(target)).resolve()
            assert (path / "index.html").is_file() if path.is_dir() else path.is_file(), f"{page}: {target}"


def test_nothing_is_loaded_from_elsewhere(site):
    for page in ("index.html", "experiments/05_architecture/index.html", "reference/nn/index.html"):
        text = (site / page).read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=\"?https?:|<link[^>]*stylesheet[^>]*https?:", text), page


def test_formulas_are_drawn(site):
    for language in ("", "zh/"):
        text = (site / f"{language}experiments/05_architecture/index.html").read_text(encoding="utf-8")
        assert text.count("<math") > 20
        assert "arithmatex" not in text
        assert '<figure class="graph"><svg' in (site / f"{language}experiments/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_search_finds_words_of_both_languages(tmp_path):
    pytest.importorskip("jieba", reason="`make docs` installs it: it cuts Chinese into words")
    index = json.loads((built(tmp_path, {}) / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = " ".join(entry["title"] + entry["text"] for entry in index["docs"])
    assert "perplexity" in texts and "\u200b注意力\u200b" in texts  # the parts between which the search looks


def loaded(name: str):
    """A module of deploy/docs by its file."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a * b * c and x*y*z", r"a \* b \* c and x\*y\*z"),
        ("`a * b` and <image>", "`a * b` and &lt;image>"),
        ("**kwargs: what else", "**kwargs: what else"),
        ("of __post_init__ and n_head", r"of \_\_post_init\_\_ and n_head"),
        ("so\n\n    a * b\n\nend * x", "so\n\n    a * b\n\nend \\* x"),
        ("Args:\n    a: less < more * 2.", "Args:\n    a: less &lt; more \\* 2."),
        ("costs $1 or $2", r"costs \$1 or \$2"),
    ],
)
def test_docstrings_stay_what_they_are(text, shown):
    assert loaded("docstrings").as_markdown(text) == shown


def test_a_private_name_leads_to_what_holds_it_and_a_wrong_one_to_nothing(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    nearest = loaded("rewriting").nearest
    known = {"lightning_gpt.nn.router", "lightning_gpt.nn.router.Router"}
    assert nearest("lightning_gpt.nn.router.Router._choose", known) == "lightning_gpt.nn.router.Router"
    assert nearest("lightning_gpt.nn.router.Rooter", known) == "lightning_gpt.nn.router.Rooter"


def test_a_graph_is_drawn_with_its_arrows():
    graphs = loaded("graphs")
    drawing = graphs.drawn('```mermaid\ngraph LR\n  a[One] --> b["Two"] --> c\n  a -.-> c\n```')
    assert drawing.count("<rect") == 3 and drawing.count('class="dotted"') == 1
    assert all(f">{label}</text>" in drawing for label in ("One", "Two", "c"))
    with pytest.raises(ValueError, match="only `graph LR` is drawn"):
        graphs.drawn("```mermaid\npie\n```")
