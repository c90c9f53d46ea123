"""Build the documentation site of docs/, without the network: `python -m tools.site`, or `make docs`.

Links from a page to a file of the repository lead to a page with that file's text. Everything that a reader would find
broken is an error: a page that is not in the navigation, a link without a target, something loaded from another host.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = Path(__file__).resolve().parent.parent
DOCS = REPOSITORY / "docs"
CONFIGURATION = REPOSITORY / "zensical.toml"
# A link that is not a picture: its label, its target and its anchor.
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "bash", ".toml": "toml"}


def nav_pages(entries: list[Any]) -> list[str]:
    """Return the files of a navigation, in its order."""
    pages = []
    for entry in entries:
        for content in entry.values():
            pages += [content] if isinstance(content, str) else nav_pages(content)
    return pages


def configured() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(CONFIGURATION.read_text())["project"]
    return project


def titles(entries: list[Any]) -> dict[str, str]:
    """Return the title of each file of a navigation."""
    found: dict[str, str] = {}
    for entry in entries:
        for title, content in entry.items():
            found |= {content: title} if isinstance(content, str) else titles(content)
    return found


def differences_of_navigation() -> list[str]:
    """Return what is wrong with the navigation: it must list every page of docs/ once."""
    listed = nav_pages(configured()["nav"])
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    faults = [f"{page} is in the navigation twice" for page in sorted({p for p in listed if listed.count(p) > 1})]
    faults += [f"docs/{page} is not in the navigation of zensical.toml" for page in sorted(there - set(listed))]
    return faults + [f"zensical.toml names docs/{page}, which does not exist" for page in sorted(set(listed) - there)]


def stage(pages: Path) -> None:
    """Copy docs/ to `pages`: links to other files of the repository lead to pages that show them.

    A link whose text is the name of a page gets the page's title.
    """
    title_of = titles(configured()["nav"])
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(DOCS, pages)
    for page in sorted(pages.rglob("*.md")):
        source = DOCS / page.relative_to(pages)

        def lead(link: re.Match[str], page: Path = page, source: Path = source) -> str:
            label, target, anchor = link[1], link[2], link[3] or ""
            file = (source.parent / target).resolve()
            if file.is_relative_to(DOCS):
                title = title_of.get(file.relative_to(DOCS).as_posix(), label)
                return f"[{title if label == target else label}]({target}{anchor})"
            if "://" in target or not file.is_relative_to(REPOSITORY):
                return link[0]
            if not file.is_file():  # a folder, or nothing: the name alone, which tests/test_readme.py checks
                return label if label.startswith("`") else f"`{label}`"
            return f"[{label}]({os.path.relpath(show(file, pages), page.parent)}{anchor})"

        page.write_text(LINK.sub(lead, page.read_text()))


def show(file: Path, pages: Path) -> Path:
    """Write a page with the text of a file of the repository, and return it."""
    name = file.relative_to(REPOSITORY).as_posix()
    text = file.read_text()
    if file.suffix == ".md":  # its own links lead elsewhere in the repository
        text = LINK.sub(lambda link: link[0] if "://" in link[2] or link[2].startswith("#") else link[1], text)
        page = pages / "files" / name
    else:
        text = f"# {name}\n\n~~~~~~ {LANGUAGES.get(file.suffix, 'text')}\n{text}\n~~~~~~\n"
        page = pages / "files" / f"{name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return page


class Page(HTMLParser):
    """What one built page links to, loads, and can be linked to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            self.loads.append(values["href"])
        elif tag != "a" and "src" in values:
            self.loads.append(values["src"])


def dead_links(site: Path) -> list[str]:
    """Return every link and picture of a built site that leads nowhere, and what another host would serve."""
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    faults = []
    for file, page in pages.items():
        name = file.relative_to(site).as_posix()
        faults += [f"{name} loads {url}" for url in page.loads if urlsplit(url).netloc]
        for link in page.links + page.loads:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            base = site if url.path.startswith("/") else file.parent
            target = (base / unquote(url.path).lstrip("/")).resolve() if url.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                faults.append(f"{name}: no {link}")
            elif target in pages and unquote(url.fragment) not in pages[target].anchors:
                faults.append(f"{name}: no heading {link}")
    return faults


def main() -> None:
    """Stage the pages, build the site strictly, and check what was built."""
    project = configured()
    site = REPOSITORY / project["site_dir"]
    stage(REPOSITORY / project["docs_dir"])
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=REPOSITORY, check=False
    )
    faults = differences_of_navigation() + (
        dead_links(site) if done.returncode == 0 else ["zensical refuses the pages"]
    )
    if faults:
        raise SystemExit("\n".join(["the site has faults:", *sorted(set(faults))]))
    print(f"built {site.relative_to(REPOSITORY)}/; look at it: python3 -m http.server --directory site 8080")


if __name__ == "__main__":
    main()
