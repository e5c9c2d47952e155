"""Keywords into an XMP packet, leaving all else in it as it is (ISO 16684-1; Lightroom's schema).

``dc:subject`` holds the flat keywords, ``lr:hierarchicalSubject`` the paths ("animals|dog"), and
``pvp:artifact`` the version of the artifact that wrote last. The XML is parsed without entities,
without DTDs and without any access to files or the network.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pvp_fast.errors import InputError

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
META = "adobe:ns:meta/"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
HIERARCHY = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"
ARTIFACT = "{urn:pvp-fast:xmp:1:}artifact"
PREFIXES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "lr": "http://ns.adobe.com/lightroom/1.0/",
    "pvp": "urn:pvp-fast:xmp:1:",
}
MAX_BYTES = 16 << 20
_EMPTY = (
    f'<x:xmpmeta xmlns:x="{META}">\n <rdf:RDF xmlns:rdf="{RDF}">\n'
    '  <rdf:Description rdf:about=""/>\n </rdf:RDF>\n</x:xmpmeta>\n'
).encode()
_CONTAINERS = tuple(f"{{{RDF}}}{kind}" for kind in ("Bag", "Seq", "Alt"))
_ITEM = f"{{{RDF}}}li"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class XmpError(InputError):
    """A packet that cannot be merged; it is left as it is."""


def merge(packet: bytes | None, keywords: Sequence[str], artifact: str) -> bytes:
    """The packet with the keywords in it.

    A keyword counts as present whatever its case; in the hierarchy it is also present as the last
    step of a path. What is present is never changed or removed.

    Args:
        packet: what the sidecar holds, in any encoding that XML knows, or None for a new one.
        keywords: names to add, in this order.
        artifact: version to record.

    Returns:
        UTF-8; the very bytes given where nothing is to be added.

    Raises:
        XmpError: no well-formed XMP, a DTD in it, too large, or keywords that are no list.
    """
    tree = _parse(_EMPTY if packet is None else packet)
    rdf = _rdf(tree)
    names = list(dict.fromkeys(filter(None, map(_printable, keywords))))
    added = _add(rdf, SUBJECT, names, _fold)
    # "|" separates the steps of a path.
    added |= _add(rdf, HIERARCHY, [name.replace("|", "/") for name in names], _leaf)
    added |= _mark(rdf, _printable(artifact))
    if not added and packet is not None:
        return packet
    declared = packet is None or _declared(packet)
    return _lxml().tostring(tree, encoding="UTF-8", xml_declaration=declared)


def read_artifact(packet: bytes) -> str | None:
    """The version that wrote last, if any did.

    Raises:
        XmpError: as :func:`merge`.
    """
    for description in _descriptions(_rdf(_parse(packet))):
        for value in _values(description, ARTIFACT):
            return value
    return None


def _parse(packet: bytes) -> Any:
    etree = _lxml()
    if len(packet) > MAX_BYTES:
        raise XmpError(f"the sidecar has {len(packet)} bytes; more than {MAX_BYTES} is no XMP")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        tree = etree.fromstring(packet, parser).getroottree()
    except (etree.XMLSyntaxError, ValueError) as error:
        raise XmpError(f"the sidecar is no well-formed XML: {error}") from error
    if tree.docinfo.internalDTD is not None:
        raise XmpError("the sidecar has a DOCTYPE, which no XMP has; remove it")
    return tree


def _rdf(tree: Any) -> Any:
    root = tree.getroot()
    if root.tag == f"{{{RDF}}}RDF":
        return root
    found = root.find(f"{{{RDF}}}RDF")
    if found is not None:
        return found
    if root.tag not in (f"{{{META}}}xmpmeta", f"{{{META}}}xapmeta"):
        raise XmpError(f"the sidecar is no XMP: its root is {root.tag!r}")
    return _append(root, f"{{{RDF}}}RDF", {"rdf": RDF})


def _descriptions(rdf: Any) -> list[Any]:
    return list(rdf.findall(f"{{{RDF}}}Description"))


def _values(description: Any, name: str) -> Iterator[str]:
    """Texts of a property, whichever way it is written."""
    if name in description.attrib:
        yield description.get(name)
    for element in description.findall(name):
        items = [item for kind in _CONTAINERS for item in element.iterfind(f"{kind}/{_ITEM}")]
        for item in items or ([] if len(element) else [element]):
            yield "".join(item.itertext())


def _add(rdf: Any, name: str, keywords: Iterable[str], same: Any) -> bool:
    """Append the keywords that the property lacks; whether there were any."""
    descriptions = _descriptions(rdf)
    present = {same(value) for each in descriptions for value in _values(each, name)}
    missing = []
    for keyword in keywords:
        if same(keyword) not in present:
            present.add(same(keyword))
            missing.append(keyword)
    if not missing:
        return False
    bag = _bag(rdf, descriptions, name)
    for keyword in missing:
        _append(bag, _ITEM, {}).text = keyword
    return True


def _bag(rdf: Any, descriptions: Sequence[Any], name: str) -> Any:
    """The list to append to; a value that stands there without a list becomes its first item."""
    elements = [element for each in descriptions for element in each.findall(name)]
    for element in elements:
        for kind in _CONTAINERS:
            found = element.find(kind)
            if found is not None:
                return found
    for element in elements:
        if len(element) or any(key.startswith(f"{{{RDF}}}") for key in element.attrib):
            raise XmpError(f"{name.rpartition('}')[2]} of the sidecar is no list of keywords")
        text, element.text = element.text, None
        bag = _append(element, _CONTAINERS[0], {"rdf": RDF})
        if text and text.strip():
            _append(bag, _ITEM, {}).text = text
        return bag
    holder = next((each for each in descriptions if name in each.attrib), None)
    if holder is None:
        holder = descriptions[0] if descriptions else _description(rdf)
    text = holder.attrib.pop(name, None)
    bag = _append(_append(holder, name, PREFIXES), _CONTAINERS[0], {"rdf": RDF})
    if text is not None:
        _append(bag, _ITEM, {}).text = text
    return bag


def _mark(rdf: Any, artifact: str) -> bool:
    descriptions = _descriptions(rdf) or [_description(rdf)]
    for description in descriptions:
        if ARTIFACT in description.attrib:
            changed = description.get(ARTIFACT) != artifact
            description.set(ARTIFACT, artifact)
            return bool(changed)
        element = description.find(ARTIFACT)
        if element is not None:
            changed = len(element) > 0 or element.text != artifact
            del element[:]
            element.text = artifact
            return bool(changed)
    _append(descriptions[0], ARTIFACT, PREFIXES).text = artifact
    return True


def _description(rdf: Any) -> Any:
    description = _append(rdf, f"{{{RDF}}}Description", {"rdf": RDF})
    description.set(f"{{{RDF}}}about", "")
    return description


def _append(parent: Any, tag: str, prefixes: dict[str, str]) -> Any:
    """A new last child, indented as its siblings are."""
    uri = tag[1:].partition("}")[0]
    wanted = {prefix: found for prefix, found in prefixes.items() if found == uri}
    child = _lxml().SubElement(parent, tag, nsmap=wanted)
    before = child.getprevious()
    if before is not None and not (before.tail or "").strip():
        child.tail, before.tail = before.tail, parent.text if _blank(parent.text) else None
    return child


def _blank(text: str | None) -> bool:
    return text is not None and not text.strip()


def _declared(packet: bytes) -> bool:
    head = packet[:64].replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")
    return head.startswith(b"<?xml ")


def _printable(text: str) -> str:
    """On one line, without the characters that XML cannot hold."""
    return " ".join(_NOT_XML.sub(" ", text).split())


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split())).casefold()


def _leaf(path: str) -> str:
    return _fold(path.rpartition("|")[2])


def _lxml() -> Any:
    try:
        from lxml import etree
    except ImportError as error:
        raise InputError('format: XMP needs lxml; pip install "pvp_fast[xmp]"') from error
    return etree
