"""The pages of the documentation: guides, resources with their calls and objects, and separate pages for operators'
calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from api import resources
from api.document.guides import FIRST, Guide, guide
from api.document.reference import Called, Described, Reference, object_id, referred
from api.http import templates
from api.http.calls import OPS

DOCS = "/docs"
CUSTOMERS, REFERENCE, OPERATORS = "Guides", "Resources", "For operators"

Json = Mapping[str, Any]
Operation = tuple[tuple[str, str], Json]  # path, method, and the call


@dataclass(frozen=True, kw_only=True)
class Page:
    """`name`: the last segment of its path, and the name of its guide. `tag`: the page has the calls with this tag.
    `below`: the page has the operators' calls whose path begins with one of these."""

    group: str
    name: str
    title: str
    has_guide: bool = True
    tag: str = ""
    below: Sequence[str] = ()

    @property
    def path(self) -> str:
        return DOCS if self.name == FIRST else f"{DOCS}/{self.name}/"

    def has(self, path: str, call: Json) -> bool:
        if self.below:
            return path.startswith(tuple(OPS + part for part in self.below))
        return bool(self.tag) and self.tag in call["tags"]


def _of_operators(title: str, *below: str) -> Page:
    name = f"operators-{title.partition(' ')[0].lower()}"
    return Page(group=OPERATORS, name=name, title=title, has_guide=False, below=below)


PAGES = (
    Page(group=CUSTOMERS, name=FIRST, title="Overview"),
    Page(group=CUSTOMERS, name="requests", title="Requests"),
    Page(group=CUSTOMERS, name="following", title="Follow a job"),
    Page(group=CUSTOMERS, name="errors", title="Errors"),
    Page(group=CUSTOMERS, name="clients", title="Clients"),
    Page(group=CUSTOMERS, name="versions", title="Versions and deprecation"),
    *(
        Page(group=REFERENCE, name=tag, title=tag.capitalize(), tag=tag)
        for tag in dict.fromkeys(resource.table.tag for resource in resources.CUSTOMERS)
    ),
    Page(group=OPERATORS, name="operators", title="Operator calls"),
    _of_operators("Cell and events", "overview/", "events/"),
    _of_operators("Nodes", "nodes/"),
    _of_operators("Jobs", "jobs/"),
    _of_operators("Servers and accounts", "servers/", "accounts/"),
    _of_operators("Schedules", "schedules/"),
    _of_operators("Search and snapshots", "search/", "snapshots/"),
    _of_operators("Audit and findings", "audit/", "findings/"),
    _of_operators("Tokens", "tokens/"),
    Page(group=OPERATORS, name="service", title="Health checks", has_guide=False, tag="service"),
)
NAMES = frozenset(page.name for page in PAGES)
_HAS_PROBLEMS = "errors"
# an object that several pages use is on the first of them in this order
_TEMPLATES = templates.read("api.document")
_ORDER = ("jobs", "servers", "snapshots")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A possible search result. A match in `title` ranks above one in `text`; results that are not details come
    first."""

    title: str
    where: str
    url: str
    text: str
    is_detail: bool = False


@dataclass(frozen=True, kw_only=True)
class Content:
    page: Page
    guide: Guide | None
    calls: Sequence[Called]
    messages: Sequence[Called]
    objects: Sequence[Described]

    @cached_property
    def contents(self) -> list[tuple[str, str]]:
        """The IDs and titles for the page's table of contents."""
        of_guide = [(each.id, each.title) for each in self.guide.sections if each.level == 2] if self.guide else []  # noqa: PLR2004
        return of_guide + [(call.id, call.title) for call in self.calls]

    def entries(self) -> Iterator[Entry]:
        path = self.page.path
        where = self.page.title if self.page.group != OPERATORS else f"{self.page.title}, for operators"
        yield Entry(title=where, where=self.page.group, url=path, text="")
        for section in self.guide.sections if self.guide else ():
            yield Entry(title=section.title, where=where, url=f"{path}#{section.id}", text=section.text)
        for name, row in self.guide.codes if self.guide else ():
            of = "errors of jobs" if row.startswith("job-") else "errors of requests"
            yield Entry(title=name, where=of, url=f"{path}#{row}", text="error code")
        for call in (*self.calls, *self.messages):
            names = " ".join(each.name for each in (*call.parameters, *call.headers, *call.body))
            text = f"{call.route} {call.text.striptags()} {names}"
            yield Entry(title=call.title, where=call.route, url=f"{path}#{call.id}", text=text)
        for each in self.objects:
            text = " ".join([each.text.striptags(), *each.words, *(f"{of.name} {of.text}" for of in each.fields)])
            url = f"{path}#{object_id(each.name)}"
            yield Entry(title=each.name, where=f"{where}, object", url=url, text=text, is_detail=True)


@dataclass
class Site:
    """All pages of a document that `api.document.openapi` generated. A page is rendered at its first request."""

    document: Json
    asset: Callable[[str], str]  # the URL of a file, by its name
    _made: dict[str, Content] = field(default_factory=dict)

    def html(self, name: str) -> str:
        """Raises KeyError if there is no such page."""
        page = {page.name: page for page in PAGES}[name]
        return self._render("page.html", here=page.path, title=page.title, content=self.content(page))

    def results(self, query: str) -> str:
        found = self.search(query)
        return self._render("search.html", here="", title="Search", content=None, query=query, found=found)

    def search(self, query: str, *, at_most: int = 30) -> list[Entry]:
        """The entries that contain all words of the query; matches in titles come first."""
        words = query.lower().split()
        ranked = [(rank, entry) for entry in self._entries if (rank := _rank(entry, words)) is not None]
        return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])[:at_most]]

    def content(self, page: Page) -> Content:
        if page.name not in self._made:
            self._made[page.name] = self._make(page)
        return self._made[page.name]

    @cached_property
    def _entries(self) -> list[Entry]:
        return [entry for page in PAGES for entry in self.content(page).entries()]

    def _make(self, page: Page) -> Content:
        reference = Reference(self.document, {name: f"{home.path}" for name, home in self._homes.items()})
        is_webhooks = page.name == "webhooks"
        return Content(
            page=page,
            guide=guide(page.name, DOCS) if page.has_guide else None,
            calls=[reference.called(route, call) for route, call in self._calls(page)],
            messages=[
                reference.message(event, item["post"])
                for event, item in (self.document["webhooks"].items() if is_webhooks else ())
            ],
            objects=[reference.described(name) for name, home in sorted(self._homes.items()) if home is page],
        )

    def _calls(self, page: Page) -> list[Operation]:
        return [
            ((path, method.upper()), call)
            for path, item in self.document["paths"].items()
            for method, call in item.items()
            if page.has(path, call)
        ]

    @cached_property
    def _homes(self) -> dict[str, Page]:
        """The page of each object: the first page that refers to it."""
        by_name = {page.name: page for page in PAGES}
        first = [by_name[_HAS_PROBLEMS], *(by_name[name] for name in _ORDER)]
        homes: dict[str, Page] = {}
        for page in dict.fromkeys([*first, *PAGES]):
            roots: list[object] = [call for _, call in self._calls(page)]
            if page.name == "webhooks":
                roots.append(self.document["webhooks"])
            unseen = ["ProblemDocument"] if page.name == _HAS_PROBLEMS else list(referred(roots))
            while unseen:
                name = unseen.pop()
                if name not in homes:
                    homes[name] = page
                    unseen += referred(self.document["components"]["schemas"][name])
        return homes

    def _render(self, template: str, **values: Any) -> str:
        groups: dict[str, list[Page]] = {}
        for page in PAGES:
            groups.setdefault(page.group, []).append(page)
        return (
            templates.environment(_TEMPLATES)
            .get_template(template)
            .render(
                asset=self.asset,
                docs=DOCS,
                errors=f"{DOCS}/{_HAS_PROBLEMS}/",
                groups=groups,
                info=self.document["info"],
                object_id=object_id,
                **values,
            )
        )


def _rank(entry: Entry, words: Sequence[str]) -> tuple[int, ...] | None:
    """Lower is better; None if a word is missing."""
    title, whole = entry.title.lower(), f"{entry.title} {entry.where} {entry.text}".lower()
    if not words or not all(word in whole for word in words):
        return None
    missed = sum(word not in title for word in words)
    return (missed, entry.is_detail, not title.startswith(words[0]))
