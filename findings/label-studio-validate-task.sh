#!/usr/bin/env bash
# LabelInterface.validate_task() of the Label Studio SDK raises TypeError for every task that has the key
# "annotations" or "predictions", also an empty list: it calls the validator of one annotation without any.
# A task as the tool itself exports it cannot be checked so; its annotations and predictions one by one can.
# Seen with label-studio-sdk 2.1.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check label-studio-sdk==2.1.2
cd "$work"
venv/bin/python - <<'PYTHON'
from importlib.metadata import version

from label_studio_sdk.label_interface import LabelInterface

print("label-studio-sdk", version("label-studio-sdk"))
config = LabelInterface(
    '<View><Image name="image" value="$image"/>'
    '<Choices name="tag" toName="image" choice="multiple"><Choice value="dog"/><Choice value="cat"/></Choices></View>'
)
region = {"from_name": "tag", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}
data = {"image": "/photo.jpg"}


def outcome(task: dict[str, object]) -> str:
    """What the task's validator says or raises."""
    try:
        return str(config.validate_task(task))
    except TypeError as error:
        return f"TypeError: {error}"


seen = {
    "data alone": outcome({"data": data}),
    "with annotations": outcome({"data": data, "annotations": [{"result": [region]}]}),
    "with predictions": outcome({"data": data, "predictions": [{"result": [region]}]}),
    "with an empty list": outcome({"data": data, "annotations": []}),
}
for what, said in seen.items():
    print(f"{what}: {said}")
assert seen.pop("data alone") == "True"
assert all("missing 1 required positional argument" in said for said in seen.values()), seen
assert config.validate_annotation({"result": [region]})
assert config.validate_prediction({"result": [region]})
PYTHON
