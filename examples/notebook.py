"""Write names_to_tags.ipynb: the cells of names_to_tags.py, run, with what they print and draw.

``python examples/notebook.py`` (needs nbclient and ipykernel). The script is the one source.
"""

from __future__ import annotations

import base64
import io
import re
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("names_to_tags.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, source) of each cell of a script in the percent format that editors know."""
    found = []
    for mark, body in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text, re.MULTILINE):
        if "[markdown]" in mark:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        found.append(("markdown" if "[markdown]" in mark else "code", body.strip()))
    return found


def build(text: str) -> Any:
    """The notebook of a script, not yet run."""
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    made = [make[kind](source, id=f"cell-{i}") for i, (kind, source) in enumerate(cells(text))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def run(notebook: Any, folder: str) -> Any:
    """The same notebook with its outputs, run in ``folder``; an error in a cell is raised."""
    from nbclient import NotebookClient

    where = {"metadata": {"path": folder}}
    options = {"timeout": None, "kernel_name": "python3", "record_timing": False}
    client = NotebookClient(notebook, resources=where, **options)
    done = client.execute()
    done.metadata.pop("language_info", None)  # the version of Python that happened to run it
    for cell in done.cells:
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [_lighter(output) for output in kept]
    return done


def _lighter(output: Any) -> Any:
    """Pictures as JPEG: learned prompts are noise to PNG, which makes them ten times as large."""
    from PIL import Image

    png = output.get("data", {}).pop("image/png", None)
    if png is not None:
        small = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            image.convert("RGB").save(small, "JPEG", quality=85)
        output["data"]["image/jpeg"] = base64.b64encode(small.getvalue()).decode()
    return output


if __name__ == "__main__":
    import nbformat

    # Not here, where the checkout may hide the installed package.
    with tempfile.TemporaryDirectory() as empty:
        nbformat.write(run(build(SCRIPT.read_text(encoding="utf-8")), empty), NOTEBOOK)
