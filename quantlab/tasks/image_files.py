"""Pictures: where they lie, and how they become a network's inputs, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from quantlab.storage.files import digest
from quantlab.tasks.batching import Batch, Encoded
from quantlab.tasks.examples import Examples

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = "pixel_values"  # the name of a vision network's input


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An encoded picture (JPEG, PNG, ...), in a file or in a table."""

    place: str  # for messages: the file, or file, column and row
    content: Path | bytes

    def encoded(self) -> bytes:
        """Its bytes."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def decoded(self) -> Image:
        """The picture in RGB; a grey one has three equal channels. Raises ValueError that names its place if
        it cannot be read."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(BytesIO(self.encoded())) as image:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "no kind of picture that Pillow knows" if "identify" in str(error) else error
            raise ValueError(f"{self.place}: the picture cannot be read: {reason}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Images(Examples):
    """Pictures, decoded when a network reads them."""

    pictures: tuple[Picture, ...]

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """The SHA-256 of each picture's bytes."""
        return tuple(digest([picture.encoded()]) for picture in self.pictures)

    @cached_property
    def fingerprint(self) -> str:
        return digest(["images", *self.contents, str(self.labels.dtype), self.labels.tobytes()])

    def _at(self, rows: np.ndarray) -> dict[str, Any]:
        return {"pictures": tuple(self.pictures[row] for row in rows)}

    def encode(self, processor: Any, max_length: int) -> EncodedImages:
        """The pictures, each of which has been read once. Raises ValueError that names one that cannot be."""
        for picture in self.pictures:
            picture.decoded()
        return EncodedImages(labels=self.labels, pictures=self.pictures)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages(Encoded):
    """Pictures that a checkpoint's image processor turns into pixels, a batch at a time."""

    labels: np.ndarray
    pictures: tuple[Picture, ...]

    def lengths(self) -> np.ndarray:
        """All alike: a processor makes pictures of one size."""
        return np.ones(len(self), np.int64)

    def batch(self, indices: np.ndarray, processor: Any, full_length: bool = False) -> Batch:
        pictures = tuple(self.pictures[index] for index in indices)
        return Batch(inputs=Pixels(pictures, processor), indices=indices)

    def take(self, indices: np.ndarray) -> Self:
        pictures = tuple(self.pictures[index] for index in indices)
        return replace(self, labels=self.labels[indices], pictures=pictures)

    def shortened(self, length: int) -> Self:
        return self

    def most_rows(self, size: int) -> int:
        return size


def processor_gaps(processor: Any) -> str:
    """What an image processor leaves out, in words; empty where it sizes and normalizes pictures."""
    sized = getattr(processor, "do_resize", False) or getattr(processor, "do_center_crop", False)
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    normal = getattr(processor, "do_normalize", False) and mean is not None and std is not None
    gaps = ("it does not resize" if not sized else "", "it does not normalize" if not normal else "")
    return ", ".join(gap for gap in gaps if gap)


class Pixels(Mapping[str, Tensor]):
    """The inputs of a batch of pictures. They are decoded anew whenever they are read, and never kept."""

    def __init__(self, pictures: Sequence[Picture], processor: Any) -> None:
        self._pictures, self._processor = pictures, processor

    def __getitem__(self, name: str) -> Tensor:
        if name != PIXELS:
            raise KeyError(name)
        images = [picture.decoded() for picture in self._pictures]
        pixels: Tensor = self._processor(images=images, return_tensors="pt")[PIXELS]
        return pixels

    def __iter__(self) -> Iterator[str]:
        return iter((PIXELS,))

    def __len__(self) -> int:
        return 1
