# %% [markdown]
# # From names to tags
#
# A list of names is all that is given. Sentences about them stand in for photos, CLIP stays frozen,
# and no picture of any of the categories is used to learn them. It runs on the *pocket model*, a
# small CLIP of 64 px that ships with the package, in under a minute on two CPU cores.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from pvp_fast import Backbone, Category, Tagger, TrainConfig, Vocabulary, build_corpus, train
from pvp_fast.demo import demo_set
from pvp_fast.evaluation import encode_set, ladder, read_folder
from pvp_fast.sentences import grammar_sentences

# %% [markdown]
# ## Names
#
# Synonyms make more sentences count; `ignore` holds phrases that only look like the category.

# %%
vocabulary = Vocabulary(
    [
        Category("dog", ("puppy", "hound"), ignore=("hot dog",)),
        Category("cat", ("kitten",)),
        Category("car", ("automobile",)),
        Category("bicycle", ("bike",)),
        Category("airplane", ("plane", "jet")),
        *("horse", "elephant", "zebra", "bird", "bus", "boat", "umbrella", "pizza", "banana"),
    ]
)
print(vocabulary.label("Two puppies and a kitten wait beside a hot dog stand."))

# %% [markdown]
# ## Sentences
#
# Here a grammar writes them, so that nothing is downloaded; human captions (`read_captions`) or a
# language model (`generate_sentences`) do the same with better sentences. A sentence's labels are
# the categories it mentions.

# %%
corpus = build_corpus(grammar_sentences(vocabulary, 2000, seed=0), vocabulary)
for sentence, labels in zip(corpus.sentences[:4], corpus.labels[:4], strict=True):
    print([vocabulary.names[c] for c in labels], sentence)

# %% [markdown]
# ## Learning
#
# Three stages: an image per category is fitted to the sentences (a pseudo visual prompt), text
# prompts learn the sentences and agree with those images, and an adapter mixes in what CLIP knew.

# %%
backbone = Backbone.load("pocket")
run = tempfile.TemporaryDirectory()
artifact = train(backbone, corpus, run.name, TrainConfig.demo(), progress=False)

# %% [markdown]
# What stage 1 learned, as pictures. They please the image encoder and not the eye: this is what the
# image side of CLIP answers to when it reads sentences about the category.

# %%
pictures = backbone.preprocess.denormalize(artifact.training.pixels[:, 0])
figure, axes = plt.subplots(2, 7, figsize=(9.5, 3.1), layout="constrained")
for axis, name, picture in zip(axes.flat, vocabulary.names, pictures, strict=True):
    axis.imshow(picture.permute(1, 2, 0))
    axis.set_title(name, fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Tagging
#
# The demo scenes are drawn in a style that the pocket model has never seen, with things in them
# that have no name here. Probabilities are calibrated on held-out sentences, which these few names
# make easy: on images they are too sure. A few labelled images put that right
# (`pvp-fast calibrate`).

# %%
tagger = Tagger.load(Path(run.name) / "artifact", backbone=backbone)
dataset = read_folder(demo_set())
ours = [dataset.names.index(name) for name in vocabulary.names]
busy = (dataset.labels[:, ours] > 0).sum(1).argsort(descending=True, stable=True)[:8]
paths = [dataset.paths[i] for i in busy.tolist()]
results = tagger.tag(paths, top_k=3, threshold=0.2)
figure, axes = plt.subplots(2, 4, figsize=(9.5, 5.6), layout="constrained")
for axis, result, row in zip(axes.flat, results, busy.tolist(), strict=True):
    shown = [vocabulary.names[c] for c in range(len(ours)) if dataset.labels[row, ours[c]] > 0]
    tags = [f"{tag.name} {tag.score:.2f}" for tag in result.tags]
    axis.imshow(Image.open(result.image))
    axis.set_title("\n".join([f"shows {', '.join(shown)}", *tags]), fontsize=8, loc="left")
    axis.axis("off")
plt.show()

# %% [markdown]
# How good is it? Mean average precision and F1 at the top three on all 150 scenes, for each part.
# F1 is low because three tags are always given, and most scenes show one of these categories or
# none.

# %%
result = ladder([artifact], encode_set(backbone, dataset))
print(result.table())

# %% [markdown]
# ## One more category
#
# Only the new one is trained. The scores of what is already there keep every bit.

# %%
grown = tagger.add_category("giraffe", sentences=["a giraffe on the grass", "a tall giraffe"])
z = torch.nn.functional.normalize(torch.randn(3, backbone.embed_dim), dim=-1)
before = tagger.tag_features(z, top_k=None, threshold=0.0)
after = grown.tag_features(z, top_k=None, threshold=0.0)
kept = [tuple(tag for tag in tags if tag.name != "giraffe") for tags in after]
print(grown.artifact.vocabulary.names[-1], "added; the others' scores the same:", kept == before)
run.cleanup()
