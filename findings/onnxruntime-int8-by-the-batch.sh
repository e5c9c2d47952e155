#!/usr/bin/env bash
# A network from onnxruntime's quantize_dynamic gives a row other numbers in another batch: activations get
# one scale for the whole tensor, the rows of all images together, and the row with the largest numbers sets
# it. So an image's embedding, and with near categories its best tag, depends on the images that were sent
# with it. In float32 it does not. Seen with onnxruntime 1.32.0, onnx 1.23.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

print("onnxruntime", version("onnxruntime"), "onnx", version("onnx"), "numpy", np.__version__)
draw = np.random.default_rng(0)
w1 = draw.standard_normal((64, 256), np.float32) / 8
w2 = draw.standard_normal((256, 32), np.float32) / 16
nodes = [
    helper.make_node("MatMul", ["x", "w1"], ["a"]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("MatMul", ["b", "w2"], ["z"]),
]
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["images", 64])]
outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["images", 32])]
weights = [numpy_helper.from_array(w1, "w1"), numpy_helper.from_array(w2, "w2")]
graph = helper.make_graph(nodes, "tower", inputs, outputs, weights)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "float32.onnx")
quantize_dynamic("float32.onnx", "int8.onnx")

x = draw.standard_normal((256, 64), np.float32)
categories = draw.standard_normal((1000, 32), np.float32)
categories /= np.linalg.norm(categories, axis=1, keepdims=True)
for name in ("float32", "int8"):
    session = onnxruntime.InferenceSession(f"{name}.onnx", providers=["CPUExecutionProvider"])
    together = session.run(None, {"x": x})[0]
    alone = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(len(x))])
    lengths = np.linalg.norm(together, axis=1)
    apart = float((np.linalg.norm(together - alone, axis=1) / lengths).max())
    other = int(((together @ categories.T).argmax(1) != (alone @ categories.T).argmax(1)).sum())
    print(f"{name}: alone and among 256 up to {apart:.1%} of its length apart; {other} other best categories")
    assert (apart > 0.01 and other > 0) if name == "int8" else (apart < 1e-5 and other == 0)
PYTHON
