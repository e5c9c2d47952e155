"""XMP sidecars: keywords go in, and everything else stays what it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.demo import demo_set
from pvp_fast.sinks import open_sink
from pvp_fast.tagging.tagger import Tag, TagResult

etree = pytest.importorskip("lxml.etree")

from pvp_fast.sinks.xmp_packet import XmpError, merge, read_artifact  # noqa: E402

V1 = "0123456789ab"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LR = "http://ns.adobe.com/lightroom/1.0/"


def keywords(packet: bytes, property: str = f"{{{DC}}}subject") -> list[str]:
    root = etree.fromstring(packet)
    return [item.text for item in root.iterfind(f".//{property}/*/{{{RDF}}}li")]


def the_rest(packet: bytes) -> list[object]:
    """Every Description's other properties and attributes, and what is no element."""
    root = etree.fromstring(packet).getroottree()
    ours = {f"{{{DC}}}subject", f"{{{LR}}}hierarchicalSubject", "{urn:pvp-fast:xmp:1:}artifact"}
    found: list[object] = []
    for description in root.iterfind(f".//{{{RDF}}}Description"):
        found += [pair for pair in description.attrib.items() if pair[0] not in ours]
        for child in description:
            if child.tag not in ours:
                found += [(e.tag, dict(e.attrib), (e.text or "").strip()) for e in child.iter()]
    others = root.xpath("//comment() | //processing-instruction()")
    return found + [etree.tostring(node, with_tail=False) for node in others]


FULL = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="somebody's toolkit">
 <rdf:RDF xmlns:rdf="{RDF}">
  <!-- a note -->
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5">
   <xmp:Label>Grün &amp; gut &lt;3</xmp:Label>
  </rdf:Description>
  <rdf:Description rdf:about="" xmlns:purl="{DC}" xmlns:dc="urn:not-dublin-core">
   <dc:subject>not a keyword</dc:subject>
   <purl:subject>
    <rdf:Bag>
     <rdf:li>Hund</rdf:li>
     <rdf:li>Dog</rdf:li>
    </rdf:Bag>
   </purl:subject>
   <purl:title><rdf:Alt><rdf:li xml:lang="x-default">Ein Tag</rdf:li></rdf:Alt></purl:title>
   <lr:hierarchicalSubject xmlns:lr="{LR}"><rdf:Bag><rdf:li>animals|dog</rdf:li></rdf:Bag>
   </lr:hierarchicalSubject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()


def test_a_new_packet() -> None:
    packet = merge(None, ["dog", "a|b", "dog", "\x01 "], V1)
    assert keywords(packet) == ["dog", "a|b"]
    assert keywords(packet, f"{{{LR}}}hierarchicalSubject") == ["dog", "a/b"]
    assert read_artifact(packet) == V1
    assert merge(packet, ["dog", "a|b"], V1) is packet


def test_what_is_there_stays_and_case_does_not_matter() -> None:
    packet = merge(FULL, ["dog", "cat"], V1)
    assert keywords(packet) == ["Hund", "Dog", "cat"]
    assert keywords(packet, f"{{{LR}}}hierarchicalSubject") == ["animals|dog", "cat"]
    assert the_rest(packet) == the_rest(FULL)
    assert b"\n     <rdf:li>Dog</rdf:li>\n     <rdf:li>cat</rdf:li>\n    </rdf:Bag>" in packet
    assert packet.startswith(b'<?xpacket begin="\xef\xbb\xbf"')
    assert merge(packet, ["CAT", "dog"], V1) is packet


@pytest.mark.parametrize(
    ("property", "expected"),
    [
        ('<dc:subject xmlns:dc="D">old</dc:subject>', ["old", "dog"]),
        ('<dc:subject xmlns:dc="D"/>', ["dog"]),
        ('<dc:subject xmlns:dc="D"><rdf:Seq><rdf:li>old</rdf:li></rdf:Seq></dc:subject>',
         ["old", "dog"]),
        ('<dc:subject xmlns:dc="D"><rdf:Bag/></dc:subject>', ["dog"]),
    ],
)  # fmt: skip
def test_every_way_to_write_keywords(property: str, expected: list[str]) -> None:
    body = f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description>{property}</rdf:Description></rdf:RDF>'
    assert keywords(merge(body.replace('"D"', f'"{DC}"').encode(), ["dog"], V1)) == expected


def test_keywords_as_an_attribute_and_without_any_description() -> None:
    head = f'<rdf:RDF xmlns:rdf="{RDF}" xmlns:dc="{DC}">'
    packet = f'{head}<rdf:Description dc:subject="old" dc:format="image/jpeg"/></rdf:RDF>'.encode()
    merged = merge(packet, ["dog"], V1)
    assert keywords(merged) == ["old", "dog"]
    assert the_rest(merged) == the_rest(packet)
    assert keywords(merge(f"{head}</rdf:RDF>".encode(), ["dog"], V1)) == ["dog"]
    assert keywords(merge(b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>', ["dog"], V1)) == ["dog"]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
LEAK = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [BOMB, LEAK, '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">'])
def test_a_doctype_is_refused(head: str) -> None:
    body = f'{head}<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description>&a;</rdf:Description></rdf:RDF>'
    with pytest.raises(XmpError):
        merge(body.encode(), ["dog"], V1)
    plain = body.replace("&a;", "")
    with pytest.raises(XmpError, match="DOCTYPE"):
        merge(plain.encode(), ["dog"], V1)


@pytest.mark.parametrize("bad", [b"", b"no xml", b"<a/>", FULL[:-80], b"\0" * 9, b"<" * 99])
def test_what_is_no_xmp_is_refused(bad: bytes) -> None:
    with pytest.raises(XmpError):
        merge(bad, ["dog"], V1)


def test_a_subject_that_is_no_list_is_refused() -> None:
    body = f'<d:subject xmlns:d="{DC}" rdf:parseType="Resource"><x/></d:subject>'
    packet = f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description>{body}</rdf:Description></rdf:RDF>'
    with pytest.raises(XmpError, match="subject"):
        merge(packet.encode(), ["dog"], V1)


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=12
).filter(lambda text: text.strip())
prefixes = st.sampled_from(["dc", "purl", "a", "_x", "lr", "pvp"])
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "iso-8859-1", "ascii")


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """A packet with keywords and other properties under any prefixes, order and encoding."""
    dc, other = draw(st.lists(prefixes, min_size=2, max_size=2, unique=True))
    nsmap = {"rdf": RDF, dc: DC, other: "urn:other"}
    rdf = etree.Element(f"{{{RDF}}}RDF", nsmap=nsmap)
    for texts in draw(st.lists(st.lists(words, max_size=3), min_size=1, max_size=3)):
        description = etree.SubElement(rdf, f"{{{RDF}}}Description")
        description.set("{urn:other}note", draw(words))
        if draw(st.booleans()):
            etree.SubElement(description, "{urn:other}text").text = draw(words)
            description.append(etree.Comment("kept"))
        if texts:
            kind = draw(st.sampled_from(["Bag", "Seq"]))
            subject = etree.SubElement(description, f"{{{DC}}}subject")
            bag = etree.SubElement(subject, f"{{{RDF}}}{kind}")
            for text in texts:
                etree.SubElement(bag, f"{{{RDF}}}li").text = text
    encoding = draw(st.sampled_from(ENCODINGS))
    if encoding.startswith("utf-8"):
        body = etree.tostring(rdf, encoding="utf-8", pretty_print=draw(st.booleans()))
        return (b"\xef\xbb\xbf" if encoding == "utf-8-sig" else b"") + body
    if encoding == "utf-16-le":  # a byte order mark and no declaration
        return b"\xff\xfe" + etree.tostring(rdf, encoding="unicode").encode(encoding)
    return etree.tostring(rdf, encoding=encoding, xml_declaration=True)


def fold(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split())).casefold()


@settings(max_examples=300, deadline=None)
@given(packets(), st.lists(words, max_size=4))
def test_merging_only_ever_adds(packet: bytes, names: list[str]) -> None:
    merged = merge(packet, names, V1)
    old, new = keywords(packet), keywords(merged)
    added = list(new)
    for word in old:  # nothing that was there is gone
        added.remove(word)
    assert set(added) <= {" ".join(name.split()) for name in names}
    assert {fold(name) for name in names} <= {fold(word) for word in new}
    assert not {fold(word) for word in added} & {fold(word) for word in old}
    assert len({fold(word) for word in added}) == len(added)
    assert the_rest(merged) == the_rest(packet)
    assert read_artifact(merged) == V1
    assert merge(merged, names, V1) is merged


def result(path: Path, *names: str) -> TagResult:
    return TagResult(str(path), tuple(Tag(n, 0.5, i) for i, n in enumerate(names)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo é.jpg"
    shutil.copy(sorted(demo_set().glob("*.jpg"))[0], path)
    return path


def test_sidecars_beside_images(photo: Path) -> None:
    before, stamp = photo.read_bytes(), photo.stat().st_mtime_ns
    sidecar = Path(f"{photo}.xmp")
    with open_sink("xmp", sys.stdout, V1, dry_run=True) as sink:
        sink.write(result(photo, "dog"))
    assert not sidecar.exists()
    with open_sink("xmp", sys.stdout, V1, append=True) as sink:
        assert not sink.has(str(photo))
        assert sink.write(result(photo, "dog", "teddy bear")) is None
        assert sink.has(str(photo))
    with open_sink("xmp", sys.stdout, "another", append=True) as sink:
        assert not sink.has(str(photo))
    assert (photo.read_bytes(), photo.stat().st_mtime_ns) == (before, stamp)
    sidecar.write_bytes(b"<broken")
    with open_sink("xmp", sys.stdout, V1) as sink:
        assert sidecar.name in (sink.write(result(photo, "dog")) or "")
    assert sidecar.read_bytes() == b"<broken"
    sidecar.unlink()
    sidecar.symlink_to(photo)
    with open_sink("xmp", sys.stdout, V1) as sink:
        assert "symbolic link" in (sink.write(result(photo, "dog")) or "")
    assert photo.read_bytes() == before


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
def test_exiftool_reads_them_and_we_keep_what_it_wrote(photo: Path) -> None:
    sidecar = Path(f"{photo}.xmp")

    def read(*tags: str) -> dict[str, object]:
        command = ["exiftool", "-json", "-struct", *(f"-{tag}" for tag in tags), str(sidecar)]
        (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return found

    subprocess.run(
        ["exiftool", "-q", "-XMP-dc:Subject=Straße", "-XMP-dc:Subject=Dog", "-XMP-xmp:Rating=4",
         "-XMP-dc:Title=Grün", "-XMP-lr:HierarchicalSubject=animals|Dog", str(sidecar)],
        check=True,
    )  # fmt: skip
    with open_sink("xmp", sys.stdout, V1) as sink:
        assert sink.write(result(photo, "dog", "teddy bear", "日本")) is None
    found = read("XMP:all")
    assert found["Subject"] == ["Straße", "Dog", "teddy bear", "日本"]
    assert found["HierarchicalSubject"] == ["animals|Dog", "teddy bear", "日本"]
    assert found["Rating"] == 4
    assert found["Title"] == "Grün"
    assert subprocess.run(["exiftool", "-validate", "-warning", "-a", str(sidecar)],
                          capture_output=True, check=True).returncode == 0  # fmt: skip
    sidecar.unlink()
    with open_sink("xmp", sys.stdout, V1) as sink:
        sink.write(result(photo, "dog", "cat"))
    assert read("Subject", "HierarchicalSubject")["Subject"] == ["dog", "cat"]
