"""The embedded models, from their packages: sizes and answers that are known from elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from quantlab.cli.conf_dir import CONF
from quantlab.network.checkpoint_sources import CheckpointSource, origin_tags, package_folder

pytestmark = pytest.mark.slow


def source(model: str) -> CheckpointSource:
    """The source of a model of conf/model, as its YAML file builds it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        keys = compose(f"model/{model}").model
    found: CheckpointSource = instantiate(keys.get("base") or keys["source"], _convert_="all")
    return found


def folder_of(model: str) -> Path:
    """The model's checkpoint; skips the test without its packages."""
    try:
        return source(model).folder()
    except (FileNotFoundError, ModuleNotFoundError) as error:
        pytest.skip(str(error))


def parameters(model: Any) -> int:
    return sum(value.numel() for value in model.parameters())


@torch.inference_mode()
def test_dinov2_answers_as_onnx_runtime_does_with_the_packages_file(tmp_path: Path) -> None:
    """Last hidden states (1, 257, 384) of an image of 224 x 224 pixels, the size that the file takes."""
    onnx = pytest.importorskip("onnx", reason="needs the extra vision")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    from transformers import Dinov2Model

    from quantlab.network.onnx_backbone import Dinov2InOnnx, rebuild

    folder_of("dinov2")
    given = source("dinov2")
    assert isinstance(given, Dinov2InOnnx)
    file = package_folder(given.package, given.extra) / given.inside
    rebuild(file, tmp_path, 224, "the package")
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    assert parameters(model) == 21_530_496 + 384 * (1 + 16 * 16)

    whole = onnx.load(file)
    last = [node for node in whole.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([last], {whole.graph.input[0].name: image})
    found = model(pixel_values=torch.from_numpy(image)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


@torch.inference_mode()
def test_mpnet_knows_which_sentences_say_the_same() -> None:
    """Its weights' hash is checked where the parts are unpacked."""
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of("mpnet")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    assert (model.config.model_type, parameters(model)) == ("mpnet", 109_486_464)
    sentences = ["A man is eating food.", "A man eats a meal.", "The new law passed in parliament."]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][..., None]
    pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    similar = torch.nn.functional.normalize(pooled) @ torch.nn.functional.normalize(pooled).T
    assert similar[0, 1] > 0.7 and similar[0, 2].abs() < 0.2


@torch.inference_mode()
def test_smollm2_goes_on_as_one_would() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of("smollm2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.eval().config
    assert (config.model_type, config.num_key_value_heads, parameters(model)) == ("llama", 3, 134_515_008)
    assert "Q4_1" in origin_tags(folder)["weights_origin"]
    for start, word in (("The capital of France is", " Paris"), ("one, two, three, four,", " five")):
        inputs = tokenizer(start, return_tensors="pt")
        assert tokenizer.decode(model(**inputs).logits[0, -1].argmax()) == word
