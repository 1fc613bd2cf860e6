"""A report's page as the tests of report.html read it."""

import re
from html.parser import HTMLParser

from util.report.page import write_report

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's text, tags and images; AssertionError where a tag is not closed."""

    def __init__(self, folder):
        super().__init__()
        self.open, self.tags, self.words, self.sources = [], [], [], []
        self.source = (folder / "report.html").read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style",):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder):
    lines = write_report(folder)
    return Page(folder), lines
