"""Small random pictures in folders of classes, and a tiny vision transformer for them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTImageProcessor

SIZE = 8  # pixels, once a processor has resized


def picture(seed: int, mode: str = "RGB") -> bytes:
    """A PNG of 12 x 10 random pixels."""
    shape = (10, 12) if mode == "L" else (10, 12, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_classes(folder: Path, count: int, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Writes ``count`` pictures of each class. Returns the folder."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"{number}.png").write_bytes(picture(100 * index + number))
    return folder


def image_processor() -> ViTImageProcessor:
    """Resizes to SIZE x SIZE and normalizes."""
    return ViTImageProcessor(size={"height": SIZE, "width": SIZE})


def tiny_vit(classes: int, seed: int = 0) -> PreTrainedModel:
    """A vision transformer of one layer in evaluation mode."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIZE,
        patch_size=4,
        num_labels=classes,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViTForImageClassification(config)
    return model.eval()


def vit_folder(folder: Path, classes: int) -> Path:
    """Writes the tiny vision transformer and its processor."""
    tiny_vit(classes).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder
