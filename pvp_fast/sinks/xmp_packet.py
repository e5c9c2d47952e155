"""Keywords into an XMP packet and out of it again, all else byte for byte (ISO 16684-1).

Programs keep keywords in several lists and read the first that is filled: digiKam's TagsList, then
Microsoft's, Lightroom's hierarchicalSubject, Media Pro's, then ``dc:subject``; Immich in the same
order. So a keyword goes into every list that is filled, with its own separator of levels, and
into ``dc:subject``, the last one; no other list is made, since it would hide what stands behind it.

What was added, list by list, is recorded in a namespace of ours, beside the artifact's version, the
settings and the size and time of the image. Its address ends in a slash: exiv2 adds one to any that
ends in neither that nor ``#``. The packet is edited by position, never written anew, so that
taking the keywords out gives what was there. It is parsed by expat without DTDs and so without
entities.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr, unescape

from pvp_fast.errors import InputError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
DC = "http://purl.org/dc/elements/1.1/"
OURS = "urn:pvp-fast:xmp:2/"
# Of earlier versions, which recorded the artifact alone; exiv2 adds the slash.
_OLD = ("urn:pvp-fast:xmp:1:", "urn:pvp-fast:xmp:1:/")
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class KeywordList:
    """A property that holds keywords: ``level`` separates the levels of a path in it, if any.

    ``kind`` is what it is in RDF; digiKam does not read its own list from another.
    """

    name: str
    space: str
    level: str = ""
    kind: str = "Bag"

    @property
    def local(self) -> str:
        """The name without its prefix."""
        return self.name.partition(":")[2]

    @property
    def names(self) -> tuple[str, str]:
        """Its full names: some programs leave the slash at the end of the address away."""
        return f"{self.space} {self.local}", f"{self.space.rstrip('/')} {self.local}"

    def text(self, keyword: str) -> str:
        """A keyword as this list holds it: on the first level, whatever marks are in it."""
        if not self.level:
            return keyword
        return keyword.replace(self.level, "/" if self.level == "|" else "-")

    def same(self, text: str) -> str:
        """What two items have in common that are the same keyword: the last level, in any case."""
        last = text.rpartition(self.level)[2] if self.level else text
        return unicodedata.normalize("NFC", " ".join(last.split())).casefold()


SUBJECT = KeywordList("dc:subject", DC)
LISTS = (
    KeywordList("digiKam:TagsList", "http://www.digikam.org/ns/1.0/", "/", "Seq"),
    KeywordList("MicrosoftPhoto:LastKeywordXMP", "http://ns.microsoft.com/photo/1.0/", "/"),
    KeywordList("lr:hierarchicalSubject", "http://ns.adobe.com/lightroom/1.0/", "|"),
    KeywordList("mediapro:CatalogSets", "http://ns.iview-multimedia.com/mediapro/1.0/", "|"),
    SUBJECT,
)
_CONTAINERS = tuple(f"{RDF} {kind}" for kind in ("Bag", "Seq", "Alt"))
_ITEM, _ABOUT, _DESCRIPTION, _RDF = (f"{RDF} {n}" for n in ("li", "about", "Description", "RDF"))
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = re.compile(rb"""<[^\s/>]+(?:\s+[^\s=]+\s*=\s*(?:"[^"]*"|'[^']*'))*\s*/?>""")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
_EMPTY = (
    f'<x:xmpmeta xmlns:x="{META}">\n <rdf:RDF xmlns:rdf="{RDF}">\n </rdf:RDF>\n</x:xmpmeta>\n'
).encode()


class XmpError(InputError):
    """A packet that cannot be merged; it is left as it is."""


@dataclass(frozen=True)
class Change:
    """What became of a packet.

    Attributes:
        packet: the new one; the very bytes given where nothing changed, None where nothing but
            ours was in it.
        added, removed: texts by the name of their list.
    """

    packet: bytes | None
    added: Mapping[str, tuple[str, ...]]
    removed: Mapping[str, tuple[str, ...]]


def merge(
    packet: bytes | None,
    keywords: Sequence[str],
    artifact: str,
    *,
    replace: bool = False,
    first: Mapping[str, Sequence[str]] | None = None,
    **fields: str,
) -> Change:
    """The packet with the keywords in it.

    A keyword counts as present whatever its case; in a list with levels also as the last level of
    a path. What is not ours is never changed or removed.

    Args:
        packet: what the sidecar holds, in any encoding that expat knows, or None for a new one.
        keywords: names to add, in this order.
        artifact: version to record.
        replace: take out what was added before; otherwise that stays, and stays recorded.
        first: texts that stand before the keywords, by the name of the list, which is made for
            them.
        fields: more to record, by name.

    Raises:
        XmpError: no well-formed XMP, a DTD in it, too large, or keywords that are no list.
    """
    removed: Mapping[str, tuple[str, ...]] = {}
    base: bytes | None = packet
    fresh = packet is None
    if packet is not None:
        back = take_back(packet)
        removed, base = back.removed, back.packet
        fresh = base is None
    names = list(dict.fromkeys(filter(None, map(_printable, keywords))))
    document = _Document(_EMPTY if base is None else base)
    added: dict[str, tuple[str, ...]] = {}
    made: list[tuple[KeywordList, tuple[str, ...]]] = []
    for each in LISTS:
        elements = document.properties(each)
        there = [item.text for element in elements for item in document.items(element)]
        there += [each_.text for each_ in elements if not each_.children and each_.text.strip()]
        attribute = document.attribute(each)
        others = tuple((first or {}).get(each.name, ()))
        if not there and not others and attribute is None and each is not SUBJECT:
            continue
        kept = (*others, *(() if replace else removed.get(each.name, ())))
        present = there if attribute is None else [*there, attribute]
        missing = _missing(each, present, (*kept, *map(each.text, names)))
        if not missing:
            continue
        added[each.name] = missing
        if elements:
            document.append(elements[0], missing, each.kind)
        else:
            before = () if attribute is None else (document.take_attribute(each),)
            made.append((each, (*before, *missing)))
    said = {"artifact": _printable(artifact)}
    said |= {name: _printable(value) for name, value in fields.items()}
    if fresh:
        said["new"] = "True"
    document.describe(made, said, added)
    new = document.edited()
    was = Counter((name, text) for name, found in removed.items() for text in found)
    now = Counter((name, text) for name, found in added.items() for text in found)
    return Change(packet if new == packet else new, _grouped(now - was), _grouped(was - now))


def take_back(packet: bytes) -> Change:
    """The packet as it was before :func:`merge`, but for what others have changed since.

    Raises:
        XmpError: as :func:`merge`.
    """
    document = _Document(packet)
    record = document.record()
    removed: dict[str, tuple[str, ...]] = {}
    for each in LISTS:
        ours = Counter(record.get(each.local, ()))
        gone: list[str] = []
        for element in document.properties(each):
            items = document.items(element)
            mine = []
            for item in reversed(items):  # ours were appended
                if ours[item.text] > 0:
                    ours[item.text] -= 1
                    mine.append(item)
            if mine and len(mine) == len(items) and each.local in record.get("made", ()):
                document.cut(element)
            else:
                for item in mine:
                    document.cut(item)
                if mine:
                    left = [" ".join(item.text.split()) for item in items if item not in mine]
                    document.restore(element, record.get("was", ()), left)
            gone += [item.text for item in reversed(mine)]
        if gone:
            removed[each.name] = tuple(gone)
    document.cut_ours()
    new = document.edited()
    alone = "True" in record.get("new", ()) and not _Document(new).has_properties()
    return Change(None if alone else packet if new == packet else new, {}, removed)


def has_keywords(packet: bytes | None) -> bool:
    """Whether others have put keywords into a packet, in any of the lists.

    Raises:
        XmpError: as :func:`merge`.
    """
    base = None if packet is None else take_back(packet).packet
    if base is None:
        return False
    document = _Document(base)
    return any(
        document.attribute(each) is not None
        or any(element.text.strip() for element in document.properties(each))
        for each in LISTS
    )


def read_keywords(packet: bytes) -> dict[str, tuple[str, ...]]:
    """The keywords in a packet, by the name of the list that holds them; filled ones alone.

    Raises:
        XmpError: as :func:`merge`.
    """
    document = _Document(packet)
    found = {}
    for each in LISTS:
        elements = document.properties(each)
        items = [item.text for element in elements for item in document.items(element)]
        plain = [e.text.strip() for e in elements if not e.children]
        attribute = document.attribute(each)
        texts = tuple(filter(None, map(_printable, (*items, *plain, attribute or ""))))
        if texts:
            found[each.name] = texts
    return found


def read_record(packet: bytes) -> dict[str, tuple[str, ...]]:
    """What is recorded in a packet, by field; empty where we never wrote.

    Raises:
        XmpError: as :func:`merge`.
    """
    return _Document(packet).record()


@dataclass
class _Node:
    """An element: bytes ``start:end``, of which its tags are ``start:inside`` and ``outside:end``.

    ``name`` and the keys of ``attributes`` are namespace, space, local name.
    """

    name: str
    start: int
    inside: int
    spaces: dict[str, str]
    attributes: dict[str, str]
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    text: str = ""
    outside: int = 0
    end: int = 0


class _Document:
    """A parsed packet, and the edits to be made in it."""

    def __init__(self, packet: bytes) -> None:
        if len(packet) > MAX_BYTES:
            raise XmpError(f"the sidecar has {len(packet)} bytes; more than {MAX_BYTES} is no XMP")
        self.encoding = _encoding(packet)
        try:
            # Positions are those of UTF-8; the way back gives the same bytes again.
            text = packet.decode(self.encoding)
            self.data = text.rstrip("\0").encode()
            self.padding = "\0" * (len(text) - len(text.rstrip("\0")))  # as cameras leave it
        except (UnicodeError, LookupError) as error:
            raise XmpError(f"the sidecar is not {self.encoding} text: {error}") from error
        self.edits: list[tuple[int, int, bytes]] = []
        self.rewritten: list[str] = []  # lists that were no element with items, as they were
        self.root = self._parse()
        self.rdf = self._find_rdf()

    def _parse(self) -> _Node:
        parser = expat.ParserCreate("utf-8", " ")
        parser.ordered_attributes = False
        open_: list[_Node] = []
        root: list[_Node] = []
        spaces: dict[str, str] = {}
        pending: dict[str, str] = {}

        def declared(prefix: str | None, uri: str | None) -> None:
            pending[prefix or ""] = uri or ""

        def started(name: str, attributes: dict[str, str]) -> None:
            nonlocal pending
            start = parser.CurrentByteIndex
            tag = _TAG.match(self.data, start)
            if tag is None or len(open_) > 200:
                raise XmpError("the sidecar is nested too deeply")
            parent = open_[-1] if open_ else None
            known = {**(parent.spaces if parent else spaces), **pending}
            pending = {}
            node = _Node(name, start, tag.end(), known, attributes, parent)
            (parent.children if parent else root).append(node)
            open_.append(node)

        def ended(name: str) -> None:
            node = open_.pop()
            empty = self.data[node.inside - 2 : node.inside] == b"/>"
            node.outside = node.inside if empty else parser.CurrentByteIndex
            node.end = node.inside if empty else self.data.index(b">", node.outside) + 1
            if open_:
                open_[-1].text += node.text

        def characters(text: str) -> None:
            open_[-1].text += text

        def doctype(*_: Any) -> None:
            raise XmpError("the sidecar has a DOCTYPE, which no XMP has; remove it")

        parser.StartNamespaceDeclHandler = declared
        parser.StartElementHandler = started
        parser.EndElementHandler = ended
        parser.CharacterDataHandler = characters
        parser.StartDoctypeDeclHandler = doctype
        parser.buffer_text = True
        try:
            parser.Parse(self.data, True)
        except expat.ExpatError as error:
            raise XmpError(f"the sidecar is no well-formed XML: {error}") from error
        return root[0]

    def _find_rdf(self) -> _Node | None:
        if self.root.name == _RDF:
            return self.root
        for child in self.root.children:
            if child.name == _RDF:
                return child
        if self.root.name not in (f"{META} xmpmeta", f"{META} xapmeta"):
            raise XmpError(f"the sidecar is no XMP: its root is {self.root.name!r}")
        return None

    @property
    def descriptions(self) -> list[_Node]:
        found = self.rdf.children if self.rdf else []
        return [child for child in found if child.name == _DESCRIPTION]

    def has_properties(self) -> bool:
        """Whether it says anything at all."""
        return any(each.children or set(each.attributes) - {_ABOUT} for each in self.descriptions)

    def properties(self, each: KeywordList) -> list[_Node]:
        """The elements of a list."""
        return [c for d in self.descriptions for c in d.children if c.name in each.names]

    def attribute(self, each: KeywordList) -> str | None:
        """A list's value where it is written as an attribute, which can hold no list."""
        pairs = (pair for d in self.descriptions for pair in d.attributes.items())
        return next((value for name, value in pairs if name in each.names), None)

    def take_attribute(self, each: KeywordList) -> str:
        """Take that attribute out; its value."""
        value = self.attribute(each)
        for node in self.descriptions:
            for found in _ATTRIBUTE.finditer(self.data, node.start, node.inside):
                prefix, _, local = found.group(1).decode().partition(":")
                if f"{node.spaces.get(prefix)} {local}" in each.names:
                    self.edits.append((found.start(), found.end(), b""))
        return value or ""

    def items(self, element: _Node) -> list[_Node]:
        """The items of a list."""
        return [
            item
            for container in element.children
            if container.name in _CONTAINERS
            for item in container.children
            if item.name == _ITEM
        ]

    def record(self) -> dict[str, tuple[str, ...]]:
        """Our own fields, however they are written."""
        found: dict[str, tuple[str, ...]] = {}
        for description in self.descriptions:
            for name, value in description.attributes.items():
                if name.partition(" ")[0] in (OURS, *_OLD):
                    found[name.partition(" ")[2]] = (value,)
            for child in description.children:
                space, _, local = child.name.partition(" ")
                if space in (OURS, *_OLD):
                    items = self.items(child)
                    texts = [i.text for i in items] if items else [child.text.strip()]
                    found[local] = (*found.get(local, ()), *texts)
        return found

    # --- edits --------------------------------------------------------------------------------

    def append(self, element: _Node, texts: Sequence[str], kind: str) -> None:
        """Add items to a list, indented as its last one is.

        Args:
            kind: what the list becomes where it is none yet.
        """
        containers = [c for c in element.children if c.name in _CONTAINERS]
        if not containers:
            if element.children or any(k.startswith(f"{RDF} ") for k in element.attributes):
                name = element.name.rpartition(" ")[2]
                raise XmpError(f"{name} of the sidecar is no list of keywords")
            self._make_list(element, texts, kind)
            return
        container = containers[0]
        items = [c for c in container.children if c.name == _ITEM]
        prefix = self._prefix(container)
        if items:
            before, at = self._space(items[-1]), items[-1].end
        else:
            before, at = b"", container.inside
        new = b"".join(before + _element(f"{prefix}li", text) for text in texts)
        if container.outside == container.inside and self.data[at - 2 : at] == b"/>":
            self._rewrite(element)
            raw = self.data[container.start + 1 : container.inside - 2]
            close = raw.split()[0]
            self.edits.append((at - 2, at, b">" + new + b"</" + close + b">"))
        else:
            self.edits.append((at, at, new))

    def _rewrite(self, element: _Node) -> None:
        local = element.name.rpartition(" ")[2]
        self.rewritten.append(f"{local} {self.data[element.start : element.end].decode()}")

    def restore(self, element: _Node, was: Iterable[str], left: Sequence[str]) -> None:
        """Put an element back as it was before it was rewritten, if it holds no more than then.

        Args:
            was: what :attr:`rewritten` held. left: texts of the items that are not ours.
        """
        space, _, local = element.name.rpartition(" ")
        for name, _, text in (each.partition(" ") for each in was):
            said = " ".join(re.sub(r"<[^>]*>", "", text).split())
            prefixes = set(re.findall(r"</?([\w.-]+):", text))
            known = all(element.spaces.get(prefix) in (space, RDF) for prefix in prefixes)
            if name == local and known and left == [unescape(said)] * bool(said):
                self.edits.append((element.start, element.end, text.encode()))

    def _make_list(self, element: _Node, texts: Sequence[str], kind: str) -> None:
        """Make a list of a property that is plain text, or empty."""
        self._rewrite(element)
        prefix = self._prefix(element, RDF)
        declared = "" if prefix else f' xmlns:rdf="{RDF}"'
        prefix = prefix or "rdf:"
        old = [element.text.strip()] if element.text.strip() else []
        items = b"".join(_element(f"{prefix}li", text) for text in (*old, *texts))
        body = f"<{prefix}{kind}{declared}>".encode() + items + f"</{prefix}{kind}>".encode()
        if element.inside == element.outside and self.data[element.inside - 2] == ord("/"):
            close = self.data[element.start + 1 : element.inside - 2].split()[0]
            at = element.inside
            self.edits.append((at - 2, at, b">" + body + b"</" + close + b">"))
        else:
            self.edits.append((element.inside, element.outside, body))

    def _prefix(self, node: _Node, space: str = RDF) -> str:
        """The prefix of a namespace where a node stands, with its colon; "" where there is none."""
        return next((f"{p}:" for p, uri in node.spaces.items() if uri == space and p), "")

    def describe(
        self,
        made: Sequence[tuple[KeywordList, Sequence[str]]],
        said: Mapping[str, str],
        added: Mapping[str, Sequence[str]],
    ) -> None:
        """Append a Description of ours: new lists, and the record."""
        others = self.descriptions
        before = self._space(others[-1]) if others else b"\n  "
        inner = before if before.strip(b" \t\r\n") == b"" and b"\n" in before else b""
        step = inner + b" " if inner else b""
        about = next((d.attributes[_ABOUT] for d in others if _ABOUT in d.attributes), "")
        spaces = {"rdf": RDF, "pvp": OURS} | {e.name.partition(":")[0]: e.space for e, _ in made}
        head = "".join(f' xmlns:{p}="{uri}"' for p, uri in spaces.items())
        lists: list[tuple[str, str, Sequence[str]]] = [(e.name, e.kind, found) for e, found in made]
        lists += [(f"pvp:{e.local}", "Bag", added[e.name]) for e in LISTS if e.name in added]
        if made:
            lists.append(("pvp:made", "Bag", [e.local for e, _ in made]))
        if self.rewritten:
            lists.append(("pvp:was", "Bag", self.rewritten))
        parts = [before, f"<rdf:Description{head} rdf:about={quoteattr(about)}>".encode()]
        for name, kind, texts in lists:
            parts += [step, f"<{name}><rdf:{kind}>".encode()]
            parts += [_element("rdf:li", text) for text in texts]
            parts.append(f"</rdf:{kind}></{name}>".encode())
        for name, text in said.items():
            parts += [step, _element(f"pvp:{name}", text)]
        parts += [inner, b"</rdf:Description>"]
        self._into_rdf(b"".join(parts), others)

    def _into_rdf(self, block: bytes, others: Sequence[_Node]) -> None:
        holder = self.rdf or self.root
        if self.rdf is None:
            head, tail = f'<rdf:RDF xmlns:rdf="{RDF}">'.encode(), b"</rdf:RDF>"
            block = head + block + tail
        if others:
            at = others[-1].end
        elif holder.outside != holder.inside or self.data[holder.inside - 2] != ord("/"):
            at = holder.inside
        else:  # <rdf:RDF …/>
            close = self.data[holder.start + 1 : holder.inside - 2].split()[0]
            at = holder.inside
            self.edits.append((at - 2, at, b">" + block + b"</" + close + b">"))
            return
        self.edits.append((at, at, block))

    def _space(self, node: _Node) -> bytes:
        """The white space before an element."""
        start = node.start
        while start and self.data[start - 1] in b" \t\r\n":
            start -= 1
        return self.data[start : node.start]

    def cut(self, node: _Node) -> None:
        """Take an element out, with the white space before it."""
        self.edits.append((node.start - len(self._space(node)), node.end, b""))

    def cut_ours(self) -> None:
        """Take our record out, and Descriptions that held nothing but ours."""
        for description in self.descriptions:
            mine = [c for c in description.children if c.name.partition(" ")[0] in (OURS, *_OLD)]
            gone = [c for c in description.children if c in mine or self._is_cut(c)]
            names = [n for n in description.attributes if n.partition(" ")[0] in (OURS, *_OLD)]
            rest = set(description.attributes) - {_ABOUT, *names}
            if (gone or names) and len(gone) == len(description.children) and not rest:
                self.cut(description)
                continue
            for child in mine:
                self.cut(child)
            self._cut_attributes(description)

    def _is_cut(self, node: _Node) -> bool:
        return any(
            start <= node.start and node.end <= end and not new for start, end, new in self.edits
        )

    def _cut_attributes(self, node: _Node) -> None:
        """Our fields that an editor has made attributes of, and the declarations it has moved."""
        for found in _ATTRIBUTE.finditer(self.data, node.start, node.inside):
            prefix, _, local = found.group(1).decode().partition(":")
            space = found.group(2)[1:-1].decode() if prefix == "xmlns" else node.spaces.get(prefix)
            if local and space in (OURS, *_OLD):
                self.edits.append((found.start(), found.end(), b""))

    def edited(self) -> bytes:
        """The packet with all edits, in its encoding."""
        parts, at = [], 0
        for start, end, new in sorted(self.edits, key=lambda e: (e[0], -e[1])):
            if start < at:  # inside what is cut already
                continue
            parts += [self.data[at:start], new]
            at = end
        data = b"".join([*parts, self.data[at:]])
        return (data.decode() + self.padding).encode(self.encoding, "xmlcharrefreplace")


def _missing(each: KeywordList, there: Iterable[str], texts: Iterable[str]) -> tuple[str, ...]:
    present = {each.same(text) for text in there}
    missing = []
    for text in texts:
        if each.same(text) not in present:
            present.add(each.same(text))
            missing.append(text)
    return tuple(missing)


def _grouped(pairs: Counter[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, text in pairs:
        found[name] = (*found.get(name, ()), text)
    return found


def _element(name: str, text: str) -> bytes:
    return f"<{name}>{escape(text)}</{name}>".encode()


def _encoding(packet: bytes) -> str:
    """As XML 1.0, appendix F; a mark at the start stays the first character."""
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if packet.startswith(mark):
            return name
    for start, name in ((b"<\0", "utf-16-le"), (b"\0<", "utf-16-be")):
        if packet.startswith(start):
            return name
    found = re.match(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""", packet)
    return found.group(1).decode().lower() if found else "utf-8"


def _printable(text: str) -> str:
    """On one line, without the characters that XML cannot hold."""
    return " ".join(_NOT_XML.sub(" ", text).split())


def texts(change: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Lines like ``dc:subject: dog, cat``."""
    return (f"{name}: {', '.join(found)}" for name, found in change.items())
