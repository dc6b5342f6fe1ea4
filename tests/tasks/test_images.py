"""Images from folders, tables and bad files; their answers against the network's own."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import image_processor, picture, tiny_vit, write_classes
from PIL import Image

from quantlab.evaluation.answering import predict
from quantlab.tasks.batching import by_length
from quantlab.tasks.image_files import Images, Picture
from quantlab.tasks.images import ImageClassification


def task(data: Path, **settings: object) -> ImageClassification:
    fields = {"name": "images", "labels": (), "metrics": ("accuracy",), "label": "label", "data": str(data)}
    return ImageClassification(**fields | settings)  # type: ignore[arg-type]


def test_folders_of_classes_are_split(tmp_path: Path) -> None:
    splits = task(write_classes(tmp_path / "data", 5)).load()
    assert list(splits.classes) == ["cat", "dog"] and (len(splits.train), len(splits.evaluation)) == (8, 2)
    assert sorted(splits.evaluation.labels) == [0, 1]


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        write_classes(tmp_path / split, count)
    splits = task(tmp_path).load()
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(splits.evaluation) == 4


@pytest.mark.parametrize("column", ["img", "image"])
def test_a_table_in_the_hubs_columns(column: str, tmp_path: Path) -> None:
    cells = [{"bytes": picture(seed), "path": None} for seed in range(4)]
    for name in ("train", "test"):
        pd.DataFrame({column: cells, "label": [0, 1, 2, 0]}).to_parquet(tmp_path / f"{name}.parquet")
    splits = task(tmp_path, labels=("cat", "dog", "eel")).load()
    assert splits.evaluation.labels.tolist() == [0, 1, 2, 0]
    assert splits.evaluation.fingerprint == splits.train.fingerprint != splits.train.head(3).fingerprint


def test_answers_are_the_networks_own_and_a_grey_picture_counts_as_rgb(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data", 4)
    (folder / "cat" / "grey.png").write_bytes(picture(9, "L"))
    examples = task(folder, evaluation_share=0.9).load().evaluation
    assert isinstance(examples, Images)
    model = tiny_vit(2)
    batches = by_length(examples.encode(image_processor(), 0), image_processor(), 3)
    found = predict(model, batches, (1, 0), "").logits
    images = [Image.open(BytesIO(each.encoded())).convert("RGB") for each in examples.pictures]
    with torch.no_grad():
        expected = model(**image_processor()(images=images, return_tensors="pt")).logits.numpy()[:, [1, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("content", [picture(3)[:60], b"no picture", b""])
def test_an_unreadable_picture_is_named(content: bytes) -> None:
    pictures = (Picture(place="cat/0.png", content=picture(0)), Picture(place="cat/1.png", content=content))
    examples = Images(labels=np.zeros(2, np.int64), pictures=pictures)
    with pytest.raises(ValueError, match=r"^cat/1\.png: the picture cannot be read"):
        examples.encode(image_processor(), 0)


def test_a_class_without_pictures_is_named(tmp_path: Path) -> None:
    (write_classes(tmp_path / "data", 3) / "eel").mkdir()
    with pytest.raises(ValueError, match="eel holds no picture"):
        task(tmp_path / "data").load()


def test_a_cell_that_holds_no_picture_is_named(tmp_path: Path) -> None:
    cells = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": None}]
    pd.DataFrame({"image": cells, "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"column 'image', row 1 holds no picture"):
        task(tmp_path, labels=("cat", "dog")).load()
