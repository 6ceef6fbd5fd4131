"""Check a built site without a network: every link, anchor and picture in it leads somewhere.

    python docs/check_html.py out/docs

Addresses of other sites are not asked, but nothing of a page may be loaded from there.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MARKS = {"problematic": "a reference that docutils could not make out", "system-message": "a message of docutils"}
LOADED = {"script", "img", "source", "iframe", "link"}  # by these a page loads more files


class Page(HTMLParser):
    """What a page offers to link to, what it links to, and what went wrong in it."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.faults, self.in_formula = set(), [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        for mark in MARKS.keys() & (found.get("class") or "").split():
            self.faults.append(f"{MARKS[mark]}, line {self.getpos()[0]}")
        address = found.get("href") or found.get("src")
        if tag == "img" and not found.get("alt"):
            self.faults.append(f"a picture without a description: {address}")
        if address and address != "#":
            self.links.append((tag, address))
        self.in_formula = self.in_formula or tag == "math"

    def handle_endtag(self, tag):
        self.in_formula = self.in_formula and tag != "math"

    def handle_data(self, data):
        if self.in_formula and "\\" in data:
            self.faults.append(f"a formula with a command that is not known: {data.strip()}")


def faults_of(site):
    """Return what is wrong with the pages of a folder, a line each; an empty folder is a fault."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"{site}: no pages"]
    for path, page in pages.items():
        for fault in page.faults:
            found.append(f"{path.relative_to(site)}: {fault}")
        for tag, address in page.links:
            if fault := _fault_of(tag, address, path, pages):
                found.append(f"{path.relative_to(site)}: {fault}: {address}")
    return found


def _fault_of(tag, address, path, pages):
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") or parts.netloc:
        return "loaded from another site" if tag in LOADED else None
    if parts.scheme:  # data:, mailto:
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return "no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "no such anchor"
    return None


def main(arguments):
    site = Path(arguments[0]).resolve()
    found = faults_of(site)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(list(site.rglob('*.html')))} pages, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
