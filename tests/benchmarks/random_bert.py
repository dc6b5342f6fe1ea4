"""A random BERT and made-up pairs of texts, longer than any length asked for, as a trial's settings."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pandas as pd
import torch
from conftest import SPECIAL, WORDS, tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig

WIDTH, WORDS_A_ROW = 64, 600


def material(folder: Path, layers: int, rows: int, width: int = WIDTH) -> list[str]:
    """The overrides of a trial on a random BERT and made-up pairs, longer than any length asked for."""
    model, data = folder / f"model{layers}", folder / f"data{rows}"
    if not model.exists():
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(WORDS),
            hidden_size=width,
            num_attention_heads=width // (WIDTH // 2),
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            max_position_embeddings=512,
            id2label={0: "entailment", 1: "not_entailment"},
            label2id={"entailment": 0, "not_entailment": 1},
        )
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(model)
        tokenizer().save_pretrained(model)
        settings = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 512}))
    if not data.exists():
        data.mkdir()
        random = np.random.default_rng(0)
        for split, count in (("train", 64), ("validation", rows)):
            texts = [" ".join(random.choice(WORDS, WORDS_A_ROW)) for _ in range(count)]
            table = pd.DataFrame({"question": [text[:20] for text in texts], "sentence": texts})
            table.assign(label=np.arange(count) % 2, idx=np.arange(count)).to_parquet(
                data / f"{split}.parquet"
            )
    return [
        "model=hf",
        f"model.path={model}",
        "task=qnli",
        f"task.data_dir={data}",
        "evaluation.holdout=0",
        "profile=off",
        "tracking=off",
    ]
