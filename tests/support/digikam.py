"""digiKam as a judge: it scans a folder into its own database, and that says what tags it shows.

Needs digikam, xvfb-run and dbus-run-session; its settings and database lie in a folder of the test.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_TOOLS = ("digikam", "xvfb-run", "dbus-run-session", "Xvfb")
_PATIENCE = 300.0  # seconds until it is given up
_SETTINGS = """[Album Settings]
Scan At Start=true
[Metadata Settings]
Use XMP Sidecar For Reading=true
"""


def is_installed() -> bool:
    return all(map(shutil.which, _TOOLS))


def shown_tags(folder: Path, work: Path) -> dict[str, set[str]]:
    """The tags that digiKam shows of each image in a folder: paths of levels, ``people/me``.

    Args:
        work: an empty folder for its settings.
    """
    (work / "config").mkdir(parents=True)
    (work / "config" / "digikamrc").write_text(_SETTINGS)
    database = work / "digikam4.db"
    with _digikam(work):  # makes the database
        _until(lambda: _asked(database, "SELECT 1 FROM Settings WHERE keyword = 'DBVersion'"))
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute(
            "INSERT INTO AlbumRoots (label, status, type, identifier, specificPath) "
            "VALUES ('photos', 0, 1, ?, '/')",
            (f"volumeid:?path={folder}",),
        )
        opened.execute("DELETE FROM Settings WHERE keyword = 'Scanned'")
        opened.commit()
    with _digikam(work):
        _until(lambda: _asked(database, "SELECT 1 FROM Settings WHERE keyword = 'Scanned'"))
    tags = {number: (above, name) for number, above, name in _asked(database, _TAGS)}

    def path(number: int) -> str:
        above, name = tags[number]
        return f"{path(above)}/{name}" if above in tags else name

    found: dict[str, set[str]] = {name: set() for (name,) in _asked(database, _IMAGES)}
    for name, number in _asked(database, _SHOWN):
        if not path(number).startswith("_Digikam_Internal_Tags_"):
            found[name].add(path(number))
    return found


_TAGS = "SELECT id, pid, name FROM Tags WHERE id > 0"
_IMAGES = "SELECT name FROM Images"
_SHOWN = "SELECT name, tagid FROM ImageTags JOIN Images ON Images.id = imageid"


@contextlib.contextmanager
def _digikam(work: Path) -> Iterator[None]:
    (work / "run").mkdir(mode=0o700, exist_ok=True)
    environment = os.environ | {
        "HOME": str(work),
        "XDG_CONFIG_HOME": str(work / "config"),
        "XDG_RUNTIME_DIR": str(work / "run"),
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "QTWEBENGINE_DISABLE_SANDBOX": "1",  # of its welcome page, which asks for it as root
        "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu",
    }
    environment.pop("QT_QPA_PLATFORM", None)
    line = ["xvfb-run", "-a", "-s", "-screen 0 800x600x24", "dbus-run-session"]
    line += ["digikam", "--database-directory", str(work)]
    with open(work / "printed", "ab") as printed:
        process = subprocess.Popen(
            line, env=environment, stdout=printed, stderr=printed, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _until(there: Callable[[], object]) -> None:
    end = time.monotonic() + _PATIENCE
    while not there():
        if time.monotonic() > end:
            raise TimeoutError(f"digiKam has not got there in {_PATIENCE:.0f} s")
        time.sleep(0.5)


def _asked(database: Path, query: str) -> list[tuple]:
    if not database.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        try:
            return opened.execute(query).fetchall()
        except sqlite3.OperationalError:  # it is being made, or written
            return []
