"""The page that goes with a shared model: what it was trained on, how good it is, how to use it, and its licence."""

import re
from pathlib import Path

from dgfast.config import Config
from dgfast.run_directory import CARD, LICENCE, TABLE, read_data

CITATION = """@inproceedings{zheng2019joint,
  title     = {Joint Discriminative and Generative Learning for Person Re-identification},
  author    = {Zheng, Zhedong and Yang, Xiaodong and Yu, Zhiding and Zheng, Liang and Yang, Yi and Kautz, Jan},
  booktitle = {CVPR},
  year      = {2019}
}"""


def model_card(folder: Path, config: Config, num_classes: int, licence: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        folder: run directory, or what else the model was read from; its table and data set are quoted where it has any.
        config: settings that the model was trained with.
        num_classes: K, identities of the training set.
        licence: of the weights, an identifier such as "apache-2.0"; "" where nobody has said. That of imported weights
            is in the folder and wins.
    """
    imported = folder / LICENCE
    terms = imported.read_text().strip() if imported.is_file() else ""
    data = read_data(folder)
    built_in = config.data.data_root is None and not terms
    if data:
        trained = f"{data['train_images']} images of {data['train_identities']} people"
        if not built_in:
            trained = f"{data['name']}: {trained}"
    else:
        trained = f"{num_classes} people" + ("" if terms else f", preset `{config.preset}`")
    if built_in:
        trained += " (synthetic pedestrians that dgfast draws)"
    size = f"{config.data.image_height}x{config.data.image_width}"
    return f"""---
library_name: dgfast
license: {"other" if terms else licence or "unknown"}
tags: [person-re-identification, image-generation, dg-net]
---

# DG-Net by dgfast

Recognises people across cameras, and dresses them in each other's clothes.

- trained on: {trained}
- pictures: {size} pixels (height x width); backbone of E_a: {config.model.backbone}
- features: two halves of {config.model.embedding}; weight of the second (alpha): {config.evaluation.alpha:g}

## Use

```python
import dgfast

model = dgfast.load("FOLDER")  # this folder
vectors = model.embed(["a.jpg", "b.jpg"])
scores = vectors @ vectors.T / (1 + model.alpha)
pictures = model.swap("body.jpg", "clothes.jpg")
```

## Figures

{_figures(folder)}

## Limits

Re-identification of people is surveillance: ask whether your use is lawful and wanted by those who are seen. Scores
fall on cameras that differ from those of the training set; measure on your own before you rely on them. Generated
pictures show people who were never photographed that way, and must not be passed off as photographs.

## Licence

{terms or _own_terms(licence)}

## Citation

```bibtex
{CITATION}
```
"""


def licence_on_card(folder: Path) -> str:
    """What a folder's model card says about the weights' licence.

    Args:
        folder: that `Model.save_pretrained` wrote, or any other.
    Returns:
        an identifier such as "apache-2.0"; "" where there is no card, or it does not know.
    """
    card = folder / CARD
    said = re.search(r"^license: (\S+)$", card.read_text(), re.MULTILINE) if card.is_file() else None
    return said[1] if said and said[1] not in ("unknown", "other") else ""


def _figures(folder: Path) -> str:
    text = (folder / TABLE).read_text().strip() if (folder / TABLE).is_file() else ""
    if not text:
        return "None were found beside the model; `dgfast eval` and `dgfast quality` measure them."
    return f"```\n{text}\n```"


def _own_terms(licence: str) -> str:
    return (
        f"The weights: {licence}." if licence else "Who trained these weights has not said what may be done with them."
    )
