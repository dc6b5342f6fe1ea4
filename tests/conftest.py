"""Fixtures with tiny models and data made on the spot: the tests need no network and no downloads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads: the tests run side by side
os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it then

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizerFast,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
)

from quantlab.engines.kernel_choice import arithmetic
from quantlab.network.checkpoint import quiet

# A slow machine is no failure, and what one run drew does not change the next.
settings.register_profile("any machine", deadline=None, database=None)
settings.load_profile("any machine")

pytest_plugins = ["servers", "searches", "processes"]

SHARED = Path(__file__).parents[2] / "shared"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "what",
    "where",
    "who",
    "is",
    "was",
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "red",
    "blue",
    "old",
)
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 66}
DISTIL_SIZES = {"dim": 32, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66}

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the compiled kernels and the measured choice of products, made once a worker. Never
    write into it."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTLAB_CACHE", str(folder))
        arithmetic()
    (folder / "native").mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def own_cache(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives every test its own cache folder with the contents of :func:`kernels`."""
    folder = Path(tempfile.mkdtemp(prefix="cache-", dir=kernels.parent))
    shutil.copytree(kernels, folder, dirs_exist_ok=True)
    monkeypatch.setenv("QUANTLAB_CACHE", str(folder))
    return folder


@pytest.fixture
def empty_cache(own_cache: Path) -> Path:
    """The test's cache folder, emptied."""
    for folder in own_cache.iterdir():
        shutil.rmtree(folder)
    return own_cache


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's empty tables. Copy it: MLflow takes seconds to create them."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and checkpoints beside the repository; skips the test without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data and checkpoints in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``make_model(family="bert", layers=2, labels=(...), seed=0)`` returns the folder of a new random
    checkpoint."""

    def make(
        family: str = "bert",
        layers: int = 2,
        labels: tuple[str, ...] = ("entailment", "not_entailment"),
        seed: int = 0,
        **config: object,
    ) -> Path:
        folder = tmp_path_factory.mktemp(family)
        names = dict(enumerate(labels))
        ids = {name: index for index, name in names.items()}
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            settings = family_config(family, layers, id2label=names, label2id=ids, **config)
            model = AutoModelForSequenceClassification.from_config(settings)
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_bert(make_model: MakeModel) -> Path:
    """The folder of a random 2-layer BERT with a tokenizer and QNLI's labels. Shared: never write into it."""
    return make_model()


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may break."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with QNLI's columns: train.parquet of 96 rows, validation.parquet of 64, of different
    lengths."""
    folder = tmp_path_factory.mktemp("glue")
    for split, count in (("train", 96), ("validation", 64)):
        qnli_rows(count, seed=count).to_parquet(folder / f"{split}.parquet")
    return folder


def qnli_rows(count: int, seed: int = 0) -> pd.DataFrame:
    """Balanced rows that can be learnt: label 0 if the sentence ends with the question's last word."""
    generator = torch.Generator().manual_seed(seed)

    def pick(least: int, most: int) -> list[str]:
        length = int(torch.randint(least, most, (), generator=generator))
        return [WORDS[index] for index in torch.randint(len(WORDS), (length,), generator=generator)]

    rows = []
    for index in range(count):
        question, sentence, label = pick(3, 6), pick(2, 20), index % 2
        sentence = [word for word in sentence if word != question[-1]] + ([] if label else question[-1:])
        rows.append((" ".join(question), " ".join(sentence) or "the", label, index))
    return pd.DataFrame(rows, columns=["question", "sentence", "label", "idx"])


def family_config(family: str, layers: int, **config: object) -> PretrainedConfig:
    """A small config of one of the families, with dropout off so that training and answers are plain."""
    shared_settings = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, **config}
    if family == "distilbert":
        return DistilBertConfig(n_layers=layers, **DISTIL_SIZES, **shared_settings)
    kinds = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}
    extra = {"embedding_size": 16} if family == "electra" else {}
    return kinds[family](num_hidden_layers=layers, **SIZES, **extra, **shared_settings)


def tokenizer() -> BertTokenizerFast:
    """A WordPiece tokenizer with a vocabulary of 15 words."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=64)
