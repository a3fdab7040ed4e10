"""What MkDocs calls while it builds: the pages come from the repository, not from docs_dir."""

from pathlib import PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page
from reference import folders, known_names, page_of, reference_pages
from repository import ROOT, Site, collect, is_chinese, title, translation
from rewriting import page_for_mkdocs, with_formulas

site = Site()
known: set[str] = set()
urls: dict[str, str] = {}
"""Where each page of the repository is on the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Finds the pages and sets the navigation."""
    global site, known
    site, known = collect(), known_names()
    chapters = [page for page in sorted(site.pages) if page.startswith("experiments/") and page.count("/") < 3]
    chapters = [page for page in chapters if PurePosixPath(page).name.startswith("README")]
    english = [page for page in chapters if not is_chinese(page)]
    chinese = [page for page in chapters if is_chinese(page)]
    config.nav = [
        {"Home": ["README.md", *(page for page in ("CONTRIBUTING.md", "CHANGELOG.md") if page in site.pages)]},
        {"Chapters": entries(english)},
        {"中文": [*(page for page in ["README.zh-CN.md"] if page in site.pages), *entries(chinese)]},
        {
            "Reference": [
                page_of(folder) if i == 0 else {folder_title(page_of(folder)): page_of(folder)}
                for i, folder in enumerate(folders())
            ]
        },
        {"Deploy": entries([page for page in sorted(site.pages) if page.startswith("deploy/")])},
        {"Measurements": entries([page for page in sorted(site.pages) if page.startswith("benchmarks/")])},
    ]
    return config


def entries(pages: list[str]) -> list[dict[str, str]]:
    """Pages with their first headings; the page of a whole folder comes first."""
    ordered = sorted(pages, key=lambda page: (page.count("/") > 1, page))
    return [{title(site.pages[page]) or page: page} for page in ordered]


def folder_title(page: str) -> str:
    """reference/experiments.measures.md -> experiments.measures."""
    return PurePosixPath(page).stem


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, what they link to, and the reference."""
    for page in site.pages:
        file = File.generated(config, page, abs_src_path=str(ROOT / page))
        if is_chinese(page):
            folder = PurePosixPath(page).parent.as_posix()
            name = PurePosixPath(page).name.removesuffix(".zh-CN.md")
            inner = "" if name == "README" else f"{name}/"
            file.dest_uri = f"zh/{'' if folder == '.' else folder + '/'}{inner}index.html"
        files.append(file)
        urls[page] = file.url
    for path in site.copied:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page, text in reference_pages(site).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrites the repository's Markdown."""
    source = page.file.src_uri
    if source not in site.pages:
        return markdown
    try:
        return page_for_mkdocs(source, markdown, site, known)
    except ValueError as error:
        raise PluginError(f"{source}: {error}") from error


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Draws the formulas."""
    try:
        return with_formulas(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Navigation) -> dict[str, Any]:
    """Names the language, and leads the switch to the same page in the other one, or to its first page."""
    source = page.file.src_uri
    chinese = is_chinese(source)
    config.theme["language"] = "zh" if chinese else "en"
    other = translation(source)
    if other not in site.pages:
        other = "README.md" if chinese else "experiments/README.zh-CN.md"
        if not chinese and "README.zh-CN.md" in site.pages:
            other = "README.zh-CN.md"
    links = {chinese: page.url, not chinese: urls[other]}
    config.extra["alternate"] = [
        {"name": "English", "lang": "en", "link": links[False] or "./"},
        {"name": "中文", "lang": "zh", "link": links[True]},
    ]
    return context
