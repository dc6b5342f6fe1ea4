"""A DINOv2 backbone whose weights an installed package carries inside an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantlab.config.checks import whole
from quantlab.network.checkpoint import quiet
from quantlab.network.checkpoint_files import NAMED, ORIGIN, PREPROCESSOR, clear_errors
from quantlab.network.checkpoint_sources import CheckpointSource, package_folder
from quantlab.storage.files import cache_dir, digest, file_digest, whole_folder

if TYPE_CHECKING:
    from transformers import Dinov2Config

PREFIX, MATMUL = "backbone.", "onnx::MatMul_"  # of names in the file
POSITIONS = "embeddings.position_embeddings"
EXPORTED_SIZE = 518  # pixels that the file's table of positions is for
PIXELS = {  # of ImageNet, as DINOv2 was trained
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}


@dataclass(frozen=True, kw_only=True)
class Dinov2InOnnx(CheckpointSource):
    """A DINOv2 backbone of ViT-S/14's sizes in a package's ONNX file.

    It is rebuilt once as a checkpoint in the cache folder, for images of ``image_size`` pixels: the table of
    positions is interpolated to that size as transformers does it, so that no forward pass does it again.
    """

    package: str
    inside: str  # the ONNX file inside the package
    extra: str  # the extra of quantlab that installs it
    image_size: int  # height and width in pixels, a multiple of 14

    def __post_init__(self) -> None:
        whole("model.base.image_size", self.image_size, 14)
        if self.image_size % 14:
            raise ValueError(
                f"model.base.image_size must be a multiple of the patches' 14 pixels, got {self.image_size}"
            )

    def folder(self) -> Path:
        """The rebuilt checkpoint.

        Raises FileNotFoundError or ModuleNotFoundError that names the extra, and ValueError if the file holds
        another network.
        """
        file = package_folder(self.package, self.extra) / self.inside
        if find_spec("onnx") is None:
            raise ModuleNotFoundError(
                f"{file.name} is read with onnx, which is not installed: pip install 'quantlab[{self.extra}]'"
            )
        name = f"{file.stem}-{self.image_size}-{digest([file_digest(file), json.dumps(PIXELS)])[:16]}"
        folder = cache_dir() / "onnx" / name
        if not folder.is_dir():
            with whole_folder(folder) as scratch:
                rebuild(file, scratch, self.image_size, f"the DINOv2 backbone of package {self.package}")
        return folder


def rebuild(file: Path, folder: Path, image_size: int, origin: str) -> None:
    """Writes a checkpoint of the backbone. Raises ValueError if tensors are missing, strange or misshapen."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=EXPORTED_SIZE, patch_size=14)
    with quiet(), clear_errors(file), torch.random.fork_rng([]):
        load: Any = Dinov2Model.from_pretrained
        held = dict(_tensors(file, config))
        model, info = load(
            None, config=config, state_dict=held, dtype=torch.float32, output_loading_info=True
        )
        if differing := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
            raise ValueError(f"it is another network: {', '.join(differing[:NAMED])}")
        table = model.embeddings.interpolate_pos_encoding(
            torch.zeros(1, 1 + (image_size // 14) ** 2, 384), image_size, image_size
        )
        model.config.image_size = image_size
        model.embeddings.position_embeddings = torch.nn.Parameter(table.detach().clone())
        model.save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    (folder / PREPROCESSOR).write_text(json.dumps({**PIXELS, "size": side}, indent=2) + "\n")
    (folder / ORIGIN).write_text(json.dumps({"weights": origin}) + "\n")


def _tensors(file: Path, config: Dinov2Config) -> Iterator[tuple[str, Tensor]]:
    """The backbone's tensors under transformers' names.

    Linears' weights are unnamed in the file: their nodes carry the names, and they are transposed.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in graph.initializer}
    width, patches = config.hidden_size, (EXPORTED_SIZE // 14) ** 2
    for name, tensor in stored.items():
        if name.startswith(PREFIX):
            yield name.removeprefix(PREFIX), tensor
    for node in _products(graph.node):
        inputs = [name for name in node.input if name.startswith(MATMUL)]
        path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
        if inputs:
            yield f"{path}.weight", stored[inputs[0]].T.contiguous()
    first, others = _shaped(stored.values(), (1, 1, width)), _shaped(stored.values(), (1, patches, width))
    yield POSITIONS, torch.cat([first, others], 1)
    yield "embeddings.mask_token", torch.zeros(1, width)  # of training; not in the file


def _products(nodes: Iterable[Any]) -> Iterator[Any]:
    return (node for node in nodes if node.op_type == "MatMul" and node.name.startswith("/backbone/"))


def _shaped(tensors: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """The first tensor of this shape. Raises ValueError if there is none."""
    found = [tensor for tensor in tensors if tuple(tensor.shape) == shape]
    if not found:
        raise ValueError(f"it holds no tensor of shape {list(shape)}")
    return found[0]
