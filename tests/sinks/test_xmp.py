"""XMP sidecars: keywords go in, and everything else stays what it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvp_fast.cli import run
from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.sinks import open_sink
from pvp_fast.tagging.tagger import Tag, TagResult

etree = pytest.importorskip("lxml.etree")

from pvp_fast.sinks.xmp import untag  # noqa: E402
from pvp_fast.sinks.xmp_packet import (  # noqa: E402
    LISTS,
    OURS,
    SUBJECT,
    KeywordList,
    XmpError,
    merge,
    read_record,
    take_back,
)

V1 = "0123456789ab"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
DC = "http://purl.org/dc/elements/1.1/"
LR = "http://ns.adobe.com/lightroom/1.0/"


def keywords(packet: bytes, property: str = f"{{{DC}}}subject") -> list[str]:
    root = etree.fromstring(packet)
    return [item.text for item in root.iterfind(f".//{property}/*/{{{RDF}}}li")]


def merged(packet: bytes | None, names: list[str], version: str = V1, **options: bool) -> bytes:
    new = merge(packet, names, version, **options).packet
    assert new is not None
    return new


def the_rest(packet: bytes) -> list[object]:
    """Every Description's other properties and attributes, and what is no element."""
    root = etree.fromstring(packet).getroottree()
    ours = {f"{{{DC}}}subject", f"{{{LR}}}hierarchicalSubject", f"{{{RDF}}}about"}
    found: list[object] = []
    for description in root.iterfind(f".//{{{RDF}}}Description"):
        found += [pair for pair in description.attrib.items() if pair[0] not in ours]
        for child in description:
            if child.tag not in ours and not str(child.tag).startswith(f"{{{OURS}}}"):
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
    packet = merged(None, ["dog", "a|b", "dog", "\x01 "])
    assert keywords(packet) == ["dog", "a|b"]
    assert keywords(packet, f"{{{LR}}}hierarchicalSubject") == []  # it would hide an image's own
    assert read_record(packet)["artifact"] == (V1,)
    assert merged(packet, ["dog", "a|b"]) is packet
    assert take_back(packet).packet is None


def test_what_is_there_stays_and_case_does_not_matter() -> None:
    packet = merged(FULL, ["dog", "cat"])
    assert keywords(packet) == ["Hund", "Dog", "cat"]
    assert keywords(packet, f"{{{LR}}}hierarchicalSubject") == ["animals|dog", "cat"]
    assert the_rest(packet) == the_rest(FULL)
    assert b"\n     <rdf:li>Dog</rdf:li>\n     <rdf:li>cat</rdf:li>\n    </rdf:Bag>" in packet
    assert packet.startswith(b'<?xpacket begin="\xef\xbb\xbf"')
    assert merged(packet, ["CAT", "dog"]) is packet
    assert take_back(packet).packet == FULL


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
    assert keywords(merged(body.replace('"D"', f'"{DC}"').encode(), ["dog"])) == expected


def test_keywords_as_an_attribute_and_without_any_description() -> None:
    head = f'<rdf:RDF xmlns:rdf="{RDF}" xmlns:dc="{DC}">'
    packet = f'{head}<rdf:Description dc:subject="old" dc:format="image/jpeg"/></rdf:RDF>'.encode()
    new = merged(packet, ["dog"])
    assert keywords(new) == ["old", "dog"]
    assert the_rest(new) == the_rest(packet)
    assert keywords(take_back(new).packet or b"") == ["old"]
    for empty in (f"{head}</rdf:RDF>", f"{head[:-1]}/>"):
        new = merged(empty.encode(), ["dog"])
        assert keywords(new) == ["dog"]
    for root in (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
        '<x:xapmeta xmlns:x="adobe:ns:meta/">\n</x:xapmeta>',
    ):
        assert keywords(merged(root.encode(), ["dog"])) == ["dog"]


ADOBE = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}">{{}}</rdf:RDF></x:xmpmeta>'
LIST = (
    f'<rdf:Description rdf:about="" xmlns:dc="{DC}"><dc:subject>{{}}</dc:subject></rdf:Description>'
)
DEFAULTS = (
    f'<xmpmeta xmlns="adobe:ns:meta/"><RDF xmlns="{RDF}"><Description about=""><subject '
    f'xmlns="{DC}"><Bag xmlns="{RDF}"><li>old</li></Bag></subject></Description></RDF></xmpmeta>'
)


@pytest.mark.parametrize(
    "packet",
    [
        ADOBE.format(LIST.format("<rdf:Bag/>")),
        ADOBE.format(LIST.format("<rdf:Bag />")),
        ADOBE.format(LIST.format("\n  <rdf:Seq/>\n ")),
        ADOBE.format(LIST.format("old &amp; good")),
        ADOBE.format(LIST.format("old, dog; good")),
        ADOBE.format(LIST.format("")),
        ADOBE.format(f'<rdf:Description xmlns:dc="{DC}"><dc:subject/></rdf:Description>'),
        ADOBE.format(LIST.format("<rdf:Bag><!-- none --></rdf:Bag>")),
        ADOBE.format(LIST.format("<rdf:Bag><rdf:li><![CDATA[<old>]]></rdf:li></rdf:Bag>")),
        ADOBE.format(LIST.format('<rdf:Bag><rdf:li xml:lang="de">old</rdf:li></rdf:Bag>')),
        ADOBE.format(LIST.format("<rdf:Bag><rdf:li>o&#108;d</rdf:li></rdf:Bag>") * 2),
        ADOBE.format(LIST.replace('about=""', "about='a>b'").format("<rdf:Bag/>")),
        ADOBE.format(LIST.replace('about=""', 'about="<"'.replace("<", "&lt;")).format("x")),
        ADOBE.replace("rdf:", "r:")
        .replace("xmlns:rdf", "xmlns:r")
        .format(LIST.replace("rdf:", "r:").format("<r:Bag><r:li>old</r:li></r:Bag>")),
        DEFAULTS,
        ADOBE.format('\r\n <rdf:Description\r\n  rdf:about=""\r\n  />\r\n'),
        "\n\n" + ADOBE.format(""),
        ADOBE.format("") + "\n" + " " * 2000 + "\n",
        ADOBE.format(LIST.format("<rdf:Bag/>")) + "\0" * 40,
        '<?xml version="1.0" encoding="UTF-16"?>' + ADOBE.format(LIST.format("<rdf:Bag/>")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_every_spelling_comes_back_byte_for_byte(packet: str, encoding: str) -> None:
    if "UTF-16" in packet and not encoding.startswith("utf-16"):
        return  # says what it is not
    if packet.startswith("\n") and encoding == "utf-16-be":
        return  # nothing tells its encoding
    data = packet.encode(encoding)
    new = merged(data, ["dog", "cat"])
    body = (
        new.decode(encoding)
        .rstrip("\0")
        .lstrip()
        .removeprefix('<?xml version="1.0" encoding="UTF-16"?>')
    )
    found = keywords(body.encode())
    assert {"dog", "cat"} <= set(found)
    assert merged(new, ["cat", "dog"]) is new
    assert take_back(new).packet == data
    assert take_back(merged(new, ["cow"], replace=True)).packet == data
    # Another editor has added one of the user's: the list stays one.
    user = new.decode(encoding).replace(
        "<rdf:li>cat</rdf:li>", "<rdf:li>cat</rdf:li><rdf:li>me</rdf:li>", 1
    )
    if "<rdf:li>me" in user:
        assert "me" in take_back(user.encode(encoding)).packet.decode(encoding)


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


@settings(max_examples=200, deadline=None)
@given(packets(), st.lists(words, max_size=4))
def test_merging_only_ever_adds(packet: bytes, names: list[str]) -> None:
    change = merge(packet, names, V1)
    assert change.packet is not None
    old, new = keywords(packet), keywords(change.packet)
    added = list(new)
    for word in old:  # nothing that was there is gone
        added.remove(word)
    assert set(added) <= {" ".join(name.split()) for name in names}
    assert {fold(name) for name in names} <= {fold(word) for word in new}
    assert not {fold(word) for word in added} & {fold(word) for word in old}
    assert len({fold(word) for word in added}) == len(added)
    assert list(change.added.get("dc:subject", ())) == added
    assert the_rest(change.packet) == the_rest(packet)
    assert read_record(change.packet)["artifact"] == (V1,)
    assert merge(change.packet, names, V1).packet is change.packet
    assert take_back(change.packet).packet == packet  # byte for byte


def result(path: Path, *names: str) -> TagResult:
    return TagResult(str(path), tuple(Tag(n, 0.5, i) for i, n in enumerate(names)))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo é.jpg"
    shutil.copy(sorted(demo_set().glob("*.jpg"))[0], path)
    return path


def put(photo: Path, *names: str, version: str = V1, **options: Any) -> str | None:
    with open_sink("xmp", sys.stdout, version, **options) as sink:
        return sink.write(result(photo, *names))


def test_sidecars_beside_images(photo: Path) -> None:
    before, stamp = photo.read_bytes(), photo.stat().st_mtime_ns
    sidecar = Path(f"{photo}.xmp")
    said: list[str] = []
    assert put(photo, "dog", dry_run=True, say=said.append) is None
    assert not sidecar.exists()
    assert said == [f"{sidecar} (new)", "  + dc:subject: dog"]
    with open_sink("xmp", sys.stdout, V1, append=True) as sink:
        assert not sink.has(str(photo))
        assert sink.write(result(photo, "dog", "teddy bear")) is None
        assert sink.has(str(photo))
    for options in ({"settings": "top_k=3"}, {"artifact": "another"}):
        version = options.pop("artifact", V1)
        with open_sink("xmp", sys.stdout, version, append=True, **options) as sink:
            assert not sink.has(str(photo))
    os.utime(photo, (1, 1))  # another photo under the name
    with open_sink("xmp", sys.stdout, V1, append=True) as sink:
        assert not sink.has(str(photo))
    os.utime(photo, ns=(stamp, stamp))
    assert (photo.read_bytes(), photo.stat().st_mtime_ns) == (before, stamp)
    sidecar.write_bytes(b"<broken")
    assert sidecar.name in (put(photo, "dog") or "")
    assert sidecar.read_bytes() == b"<broken"
    sidecar.unlink()
    sidecar.symlink_to(photo)
    assert "symbolic link" in (put(photo, "dog") or "")
    assert photo.read_bytes() == before


@pytest.mark.parametrize("format", ["xmp", "txt"])
def test_what_its_owner_has_closed_to_writing_stays(photo: Path, format: str) -> None:
    beside = Path(f"{photo}.xmp") if format == "xmp" else photo.with_suffix(".txt")
    beside.write_bytes(FULL if format == "xmp" else b"cow, horse")
    before = beside.read_bytes()
    beside.chmod(0o444)
    for options in ({}, {"dry_run": True}):
        with open_sink(format, sys.stdout, V1, **options) as sink:
            assert "read-only" in (sink.write(result(photo, "cat")) or "")
    assert beside.read_bytes() == before
    beside.chmod(0o644)
    with open_sink(format, sys.stdout, V1) as sink:
        assert sink.write(result(photo, "cat")) is None
    beside.chmod(0o444)
    tagged = beside.read_bytes()
    assert run(["untag", str(photo)]) == 3
    assert beside.read_bytes() == tagged
    beside.chmod(0o644)
    assert run(["untag", str(photo)]) == 0
    assert beside.read_bytes() == before


@pytest.mark.parametrize("name", ["{stem}.xmp", "{name}.xmp", "{stem}.XMP", "{name}.Xmp"])
def test_the_sidecar_that_is_there_is_taken(photo: Path, name: str) -> None:
    sidecar = photo.with_name(name.format(stem=photo.stem, name=photo.name))
    sidecar.write_bytes(FULL)
    assert put(photo, "cat") is None
    assert [p for p in photo.parent.iterdir() if p.suffix.lower() == ".xmp"] == [sidecar]
    assert keywords(sidecar.read_bytes()) == ["Hund", "Dog", "cat"]
    for style in ("full", "stem"):  # the style is for new ones
        assert put(photo, "cow", sidecar=style) is None
    assert [p for p in photo.parent.iterdir() if p.suffix.lower() == ".xmp"] == [sidecar]
    ((path, _, new),) = untag(str(photo))
    assert (path, new) == (sidecar, FULL)


def test_new_sidecars_and_two_of_them(photo: Path) -> None:
    full, stem = Path(f"{photo}.xmp"), photo.with_suffix(".xmp")
    assert put(photo, "dog", sidecar="stem") is None
    assert stem.exists()
    assert not full.exists()
    full.write_bytes(FULL)
    with open_sink("xmp", sys.stdout, V1) as sink:
        assert sink.write(result(photo, "cat")) is None
        assert f"{stem.name} left alone" in sink.notes[0]
    assert keywords(stem.read_bytes()) == ["dog"]
    assert keywords(full.read_bytes()) == ["Hund", "Dog", "cat"]
    assert put(photo, "cow", sidecar="stem") is None
    assert keywords(stem.read_bytes()) == ["dog", "cow"]
    assert {p: new for p, _, new in untag(str(photo))} == {full: FULL, stem: None}
    with pytest.raises(InputError, match="full, stem"):
        put(photo, "dog", sidecar="beside")


def test_a_sidecar_of_the_name_without_ending_may_be_that_of_another_image(photo: Path) -> None:
    shutil.copy(photo, photo.with_suffix(".png"))
    photo.with_suffix(".xmp").write_bytes(FULL)
    with open_sink("xmp", sys.stdout, V1) as sink:
        assert sink.write(result(photo, "cat")) is None
        assert photo.with_suffix(".png").name in sink.notes[0]
    assert photo.with_suffix(".xmp").read_bytes() == FULL
    assert keywords(Path(f"{photo}.xmp").read_bytes()) == ["cat"]


def test_only_beside_a_file_that_exists(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for format in ("xmp", "txt"):
        for wrong in ("photos/new.jpg", "gone.jpg", "elsewhere", "shard.tar/a"):
            with open_sink(format, sys.stdout, V1) as sink:
                reason = sink.write(result(Path(wrong), "dog"))
            assert "no file" in (reason or ""), wrong
    assert {p.name for p in tmp_path.rglob("*")} == {photo.name, "elsewhere"}


def test_one_image_s_trouble_is_its_own(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", f"{photo}.xmp")

    assert put(photo, "cat") is None  # a file that is there is replaced, a new one only named
    before = Path(f"{photo}.xmp").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert "Permission denied" in (put(photo, "dog") or "")
    assert Path(f"{photo}.xmp").read_bytes() == before
    Path(f"{photo}.xmp").unlink()
    Path(f"{photo}.xmp").mkdir()
    assert "Is a directory" in (put(photo, "dog") or "")


def test_machine_keywords_are_told_from_the_user_s() -> None:
    first = merged(FULL, ["dog", "cat", "car"], replace=True)
    user = first.replace(b"<rdf:li>Hund</rdf:li>", b"<rdf:li>Hund</rdf:li><rdf:li>cow</rdf:li>")
    change = merge(user, ["cat", "tree", "cow"], V1, replace=True)
    assert keywords(change.packet or b"") == ["Hund", "cow", "Dog", "cat", "tree"]
    assert dict(change.added)["dc:subject"] == ("tree",)
    assert dict(change.removed)["dc:subject"] == ("car",)
    kept = merged(user, ["tree"])  # without replacing, all of them stay ours
    assert keywords(kept) == ["Hund", "cow", "Dog", "cat", "car", "tree"]
    back = FULL.replace(b"<rdf:li>Hund</rdf:li>", b"<rdf:li>Hund</rdf:li><rdf:li>cow</rdf:li>")
    assert take_back(kept).packet == take_back(change.packet or b"").packet == back
    # What the user has taken out stays out, unless it is found again.
    without = kept.replace(b"\n     <rdf:li>car</rdf:li>", b"")
    assert "car" not in keywords(merged(without, ["dog"]))


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("each", LISTS, ids=lambda each: each.local)
def test_lists_that_are_filled_get_the_keyword_and_no_other_is_made(
    each: KeywordList, ending: str
) -> None:
    items = {"/": "Tiere/Hund", "|": "Tiere|Hund", "": "Hund"}[each.level]
    prefix = each.name.partition(":")[0]
    packet = ending.join(
        [
            f'<rdf:RDF xmlns:rdf="{RDF}">',
            f' <rdf:Description rdf:about="x" xmlns:{prefix}="{each.space}">',
            f"  <{each.name}><rdf:Seq><rdf:li>{items}</rdf:li></rdf:Seq></{each.name}>",
            " </rdf:Description></rdf:RDF>",
        ]
    ).encode()
    new = merged(packet, ["hund", "dog", "a/b|c"])
    odd = {"/": "a-b|c", "|": "a/b/c", "": "a/b|c"}[each.level]
    assert keywords(new, f"{{{each.space}}}{each.local}") == [items, "dog", odd]
    for other in LISTS:
        found = keywords(new, f"{{{other.space}}}{other.local}")
        if other is SUBJECT and each is not SUBJECT:
            assert found == ["hund", "dog", "a/b|c"]
        elif other is not each:
            assert found == []
    assert take_back(new).packet == packet
    assert merged(new, ["hund", "dog", "a/b|c"]) is new


def test_an_empty_list_hides_nothing_and_is_not_filled() -> None:
    packet = FULL.replace(b"<rdf:li>animals|dog</rdf:li>", b"")
    new = merged(packet, ["cat"])
    assert keywords(new, f"{{{LR}}}hierarchicalSubject") == []
    assert keywords(new) == ["Hund", "Dog", "cat"]
    assert take_back(new).packet == packet


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("attribute", [False, True])
def test_the_address_of_earlier_versions_is_read_and_taken_out(slash: str, attribute: bool) -> None:
    space = f' xmlns:pvp="urn:pvp-fast:xmp:1:{slash}"'
    if attribute:
        own = FULL.replace(b' xmp:Rating="5"', f' xmp:Rating="5"{space} pvp:artifact="a"'.encode())
    else:
        element = f"<pvp:artifact{space}>a</pvp:artifact>"
        own = FULL.replace(b"<xmp:Label>", f"{element}<xmp:Label>".encode())
    assert read_record(own) == {"artifact": ("a",)}
    back = take_back(own).packet or b""
    assert read_record(back) == {}
    assert b"pvp" not in back
    assert the_rest(back) == the_rest(FULL)
    new = merged(own, ["cat"])
    assert read_record(new)["artifact"] == (V1,)
    assert b"xmp:1:" not in new


def tool(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def by_exiftool(sidecar: Path) -> dict[str, list[str]]:
    line = ["exiftool", "-json", "-sep", "\x01", "-XMP:all", str(sidecar)]
    (found,) = json.loads(tool(*line))
    return {k: str(v).split("\x01") for k, v in found.items()}


def by_exiv2(sidecar: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in tool("exiv2", "-PXkt", str(sidecar)).splitlines():
        key, _, value = line.partition(" ")
        found[key.removeprefix("Xmp.")] = value.strip().split(", ")
    return found


def in_digikam_s_order(sidecar: Path) -> list[str]:
    """The first list that is filled, as digiKam reads them; the last level of each item."""
    for each in LISTS:
        found = keywords(sidecar.read_bytes(), f"{{{each.space}}}{each.local}")
        if found:
            return [text.rpartition(each.level)[2] if each.level else text for text in found]
    return []


SETS = {
    "flat": ["-XMP-dc:Subject=Straße", "-XMP-dc:Subject=Dog"],
    "lightroom": [
        "-XMP-dc:Subject=Straße",
        "-XMP-dc:Subject=Dog",
        "-XMP-lr:HierarchicalSubject=Orte|Straße",
        "-XMP-lr:HierarchicalSubject=animals|Dog",
    ],
    "digikam": [
        "-XMP-digiKam:TagsList=Orte/Straße",
        "-XMP-digiKam:TagsList=animals/Dog",
        "-XMP-lr:HierarchicalSubject=Orte|Straße",
        "-XMP-lr:HierarchicalSubject=animals|Dog",
        "-XMP-dc:Subject=Straße",
        "-XMP-dc:Subject=Dog",
    ],
    "windows": [
        "-XMP-microsoft:LastKeywordXMP=Orte/Straße",
        "-XMP-microsoft:LastKeywordXMP=animals/Dog",
        "-XMP-dc:Subject=Straße",
        "-XMP-dc:Subject=Dog",
    ],
}


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool")
@pytest.mark.parametrize("kind", SETS)
def test_every_reader_shows_both_after_every_merge(photo: Path, kind: str) -> None:
    sidecar = Path(f"{photo}.xmp")
    tool("exiftool", "-q", *SETS[kind], "-XMP-xmp:Rating=4", "-XMP-dc:Title=Grün", str(sidecar))
    before = sidecar.read_bytes()
    wanted = {"straße", "dog"}
    for names in (["dog", "teddy bear"], ["teddy bear", "日本"], ["car", "a & b <c>"]):
        assert put(photo, *names) is None
        wanted |= set(names)
        found = by_exiftool(sidecar)
        assert {text.lower() for text in found["Subject"]} == wanted
        assert found["Rating"] == ["4"]
        assert found["Title"] == ["Grün"]
        assert {text.lower() for text in in_digikam_s_order(sidecar)} == wanted
        if shutil.which("exiv2"):
            assert {text.lower() for text in by_exiv2(sidecar)["dc.subject"]} == wanted
        for tag, mark in (("HierarchicalSubject", "|"), ("TagsList", "/")):
            if tag in found:
                assert {text.rpartition(mark)[2].lower() for text in found[tag]} == wanted
        tool("exiftool", "-validate", "-warning", "-a", str(sidecar))
    ((_, _, new),) = untag(str(photo))
    assert new == before


@pytest.mark.skipif(shutil.which("exiv2") is None, reason="needs exiv2")
@pytest.mark.parametrize("editor", ["exiv2", "exiftool"])
def test_our_record_survives_other_programs(photo: Path, editor: str) -> None:
    if shutil.which(editor) is None:
        pytest.skip(f"needs {editor}")
    sidecar = Path(f"{photo}.xmp")
    plain = FULL.replace(b' xmlns:dc="urn:not-dublin-core"', b"").replace(b"purl", b"dc")
    plain = plain.replace(b"<dc:subject>not a keyword</dc:subject>", b"")
    plain = plain.replace(b"http://dc.org", b"http://purl.org")
    sidecar.write_bytes(plain)
    assert put(photo, "dog", "cat", "washer/dryer") is None
    if editor == "exiv2":
        tool("exiv2", "-M", "set Xmp.xmp.Rating 3", str(sidecar))
    else:
        tool("exiftool", "-q", "-overwrite_original", "-XMP-xmp:Rating=3", str(sidecar))
    saved = sidecar.read_bytes()
    assert saved != merged(plain, ["dog", "cat", "washer/dryer"])
    with open_sink("xmp", sys.stdout, V1, append=True) as sink:
        assert sink.has(str(photo))
    assert put(photo, "cat", "car", replace=True) is None
    found = keywords(sidecar.read_bytes())
    assert sorted(found) == ["Dog", "Hund", "car", "cat"]
    ((_, _, new),) = untag(str(photo))
    assert sorted(keywords(new or b"")) == ["Dog", "Hund"]
    assert keywords(new or b"", f"{{{LR}}}hierarchicalSubject") == ["animals|dog"]
    assert b"pvp" not in (new or b"")
    sidecar.write_bytes(new or b"")
    assert by_exiv2(sidecar)["xmp.Rating"] == ["3"]
