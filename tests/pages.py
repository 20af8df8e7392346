"""A page as tests read it: its words, what it loads from elsewhere, and how its tags nest."""

import re
from html.parser import HTMLParser

from bs4 import BeautifulSoup

LOADS = ("src", "srcset", "data", "poster", "background", "action", "formaction", "manifest")
ELSEWHERE = "[href]:not(a), [xlink\\:href], iframe, embed, object, base, [http-equiv=refresh]"


def read(text):
    return BeautifulSoup(text, "html.parser")


def words(text):
    """What a reader sees of a page or of a part of one, scripts and styles left out."""
    return " ".join(read(str(text)).get_text(" ").split())


def outside(text):
    """Everything that a browser would fetch for the page."""
    page = read(text)
    loads = [tag[name] for name in LOADS for tag in page.select(f"[{name}]")]
    styles = [
        *(tag.text for tag in page.select("style")),
        *(t["style"] for t in page.select("[style]")),
    ]
    found = [*page.select(ELSEWHERE), *(own for own in loads if not own.startswith("data:image/"))]
    return found + re.findall(r"@import[^;]*|url\([^)]*\)", "\n".join(styles))


class Nesting(HTMLParser):
    """The tags that are `open` at the end; a tag that closes another one is refused."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag not in ("img", "meta", "br", "input", "link"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"
