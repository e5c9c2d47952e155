"""Peak memory of stage 1 against the number of categories, whose images lie in a file.

``python benchmarks/stage_memory.py [--model ViT-B-32] [--counts 600 3000] [--steps 1]
[--precision float32] [--json FILE]``

Each case is a process of its own: a model with random weights, sentences of random features that
mention two categories each, and steps of 128 categories and 512 sentences. ``peak_mb`` is the peak
of the process's resident memory (MiB) once the model is loaded, once the images have been made and
each encoded, and after the steps; ``disk_mb`` what the file takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write_results

CASE = """
import json, re, sys, time
from pathlib import Path
count, steps, folder, model, precision = sys.argv[1:]
import torch
import torch.nn.functional as F
from pvp_fast import Backbone
from pvp_fast.training import LoopConfig, VisualPromptConfig
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.loop import run_stage
from pvp_fast.training.sampled import WIDTH, SampledVisualPrompts

peaks, seconds = {}, {}

def reached(what):
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
    peaks[what] = int(peak[1]) // 1024
    seconds[what] = round(time.process_time(), 1)

backbone = Backbone.load(model, None if model == "pocket" else "random", precision=precision)
reached("model")
generator = torch.Generator().manual_seed(0)
x = F.normalize(torch.randn(8000, backbone.embed_dim, generator=generator), dim=-1)
lists = torch.randint(int(count), (8000, 2), generator=generator).tolist()
data = Sentences(x.half().numpy(), label_lists(lists), int(count))
loop = LoopConfig(steps=int(steps), lr=0.1, batch_size=512, eval_every=1000, warmup_steps=1)
config = VisualPromptConfig(loop, categories_per_step=WIDTH)
path = Path(folder) / "images.rows"
stage = SampledVisualPrompts(backbone, data, data, config, path)
reached("images")
run_stage(stage, loop, Path(folder), progress=False)
reached("steps")
print(json.dumps({"precision": backbone.precision, "peak_mb": peaks, "cpu_seconds": seconds,
                  "disk_mb": path.stat().st_blocks * 512 >> 20}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--counts", type=int, nargs="+", default=[600, 3000])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            words = [str(count), str(options.steps), folder, options.model, options.precision]
            done = subprocess.run(
                [sys.executable, "-c", CASE, *words], capture_output=True, text=True, check=True
            )
        rows.append({"categories": count, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        write_results(options.json, {"model": options.model, "steps": options.steps, "cases": rows})


if __name__ == "__main__":
    main()
