#!/usr/bin/env bash
# exiv2 (which digiKam and darktable write with) changes the address of a namespace that it does not know
# when it saves an XMP file: where it does not end in "/" or "#", a slash is added. To any other program
# the properties then belong to another namespace, and their owner no longer finds them.
# Seen with exiv2 0.28.9 (its Python package 0.19.2). An address that ends in "/" stays what it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check exiv2==0.19.2
cd "$work"
venv/bin/python - <<'PYTHON'
import exiv2

PACKET = '''<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:a="urn:example:tags:1" xmlns:b="http://example.org/tags/" a:state="kept" b:state="kept"/>
</rdf:RDF></x:xmpmeta>'''
print("exiv2", exiv2.version())
with open("photo.xmp", "w", encoding="utf-8") as stream:
    stream.write(PACKET)
image = exiv2.ImageFactory.open("photo.xmp")
image.readMetadata()
image.xmpData()["Xmp.dc.source"] = "a scan"
image.writeMetadata()
with open("photo.xmp", encoding="utf-8") as stream:
    saved = stream.read()
print("\n".join(line.strip() for line in saved.splitlines() if "xmlns:a" in line or "xmlns:b" in line))
assert 'xmlns:a="urn:example:tags:1/"' in saved
assert 'xmlns:b="http://example.org/tags/"' in saved
PYTHON
