#!/usr/bin/env bash
# In transformers "last_hidden_state" is behind the last LayerNorm in CLIP's text tower and in both of
# SigLIP's, and before it in CLIP's image tower: its patches, what segmentation, retrieval and
# vision-language models take, are not what the class token's pooled output is made from.
# Seen with transformers 5.24.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.14.1 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import torch
import transformers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
picture = {"image_size": 32, "patch_size": 8}
towers = {
    "CLIP, texts": CLIPTextModel(CLIPTextConfig(**small)),
    "CLIP, images": CLIPVisionModel(CLIPVisionConfig(**small, **picture)),
    "SigLIP, texts": SiglipTextModel(SiglipTextConfig(**small, bos_token_id=1, eos_token_id=1)),
    "SigLIP, images": SiglipVisionModel(SiglipVisionConfig(**small, **picture)),
}
inputs = {"texts": torch.tensor([[0, 320, 1929, 1]]), "images": torch.randn(1, 3, 32, 32)}
found = {}
for name, tower in towers.items():
    ends = ("final_layer_norm", "post_layernorm")
    (last,) = (module for path, module in tower.named_modules() if path.endswith(ends))
    made: list[torch.Tensor] = []
    last.register_forward_hook(lambda *given, made=made: made.append(given[2]))
    kind = name.split(", ")[1]
    with torch.no_grad():
        state = tower.eval()(inputs[kind]).last_hidden_state
    found[name] = made[0].shape == state.shape and torch.equal(made[0], state)
    print(f"{name}: last_hidden_state is {'behind' if found[name] else 'before'} the last LayerNorm")
assert found == {"CLIP, texts": True, "CLIP, images": False, "SigLIP, texts": True, "SigLIP, images": True}
PYTHON
