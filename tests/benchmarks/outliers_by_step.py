"""Do outliers appear while a small decoder learns, and do clipped softmax and gates keep them away?

``python tests/benchmarks/outliers_by_step.py train.txt test.txt out/``: trains a Llama of 2 million
parameters from random weights, once for each kind of attention, and writes ``steps.csv`` and ``steps.png``:
the largest activation, the largest kurtosis of a site, and the perplexity in FP32 and in W8A8, at a few
steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from quantlab.calibration.estimators import MinMax
from quantlab.calibration.probe import observe
from quantlab.engines.insert import insert
from quantlab.evaluation.answering import predict
from quantlab.methods.bits import Bits
from quantlab.methods.method import plan_weights
from quantlab.methods.uniform import Uniform
from quantlab.network.architecture import all_sites
from quantlab.network.models import Recipe
from quantlab.plan.plan import QuantPlan
from quantlab.tasks.batching import Tokenized, by_length
from quantlab.tasks.heads import TOKENS
from quantlab.tasks.perplexity import Perplexity
from quantlab.tasks.scores import SCORES
from quantlab.training.clipped_softmax import ClippedSoftmax
from quantlab.training.gated_attention import GatedAttention
from quantlab.training.losses import loss_for
from quantlab.training.recipe import train
from quantlab.training.training import Course, Plain

VOCABULARY, WINDOW, EVALUATED, CALIBRATED = 2048, 64, 64, 16
BITS = Bits(weights=8, activations=8, symmetric=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("train", type=Path)
    options.add_argument("test", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--learning-rate", type=float, default=2e-3)
    asked = options.parse_args()
    tokenizer = tokenizer_of(asked.train)
    rows, test = (windows(path, tokenizer) for path in (asked.train, asked.test))
    recipe = Recipe(
        epochs=100, learning_rate=asked.learning_rate, batch_size=16, bf16=False, weight_decay=0.1
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, object]] = []
    for name, training in {
        "softmax": Plain(recipe=recipe),
        "clipped softmax": ClippedSoftmax(recipe=recipe, alpha=12.0, length=WINDOW, zeta=1.0),
        "gated attention": GatedAttention(recipe=recipe, pi_init=0.25, scale=1.0),
    }.items():
        found += [{"attention": name, **row} for row in learned(training, tokenizer, rows, test, asked.steps)]
        pd.DataFrame(found).to_csv(asked.out / "steps.csv", index=False)
    draw(pd.DataFrame(found), asked.out / "steps.png")


def tokenizer_of(text: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE, learnt from the text."""
    learner = ByteLevelBPETokenizer()
    learner.train([str(text)], vocab_size=VOCABULARY, special_tokens=["<pad>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=learner._tokenizer, pad_token="<pad>")


def windows(text: Path, tokenizer: PreTrainedTokenizerFast) -> Tokenized:
    """The text in windows of equal length."""
    task = Perplexity(name="perplexity", labels=(), metrics=("perplexity",), data=str(text), window=WINDOW)
    return task.units(task.load().evaluation, tokenizer).encode(tokenizer, WINDOW)


def learned(
    training: Plain, tokenizer: PreTrainedTokenizerFast, rows: Tokenized, test: Tokenized, steps: int
) -> list[dict[str, float]]:
    """What is measured at a few steps of one training."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.config._attn_implementation = "eager"
    training.start(model)
    wanted, found = {0, steps, *np.geomspace(steps / 32, steps, 6).round().astype(int).tolist()}, []
    rows = rows.take(np.arange(min(len(rows), 16 * steps)))
    epochs = -(-16 * steps // len(rows))
    recipe = Recipe(**{**vars(training.recipe), "epochs": epochs})
    done = iter(range(1, 10**9))

    def look(step: int) -> None:
        if step in wanted:
            model.eval()
            with torch.no_grad():
                found.append({"step": step, **measured(model, tokenizer, rows, test)})
            print(training.__class__.__name__, found[-1], flush=True)
            model.train()

    look(0)
    train(model, tokenizer, rows, recipe, loss_for(TOKENS, ()), Course(after_step=lambda: look(next(done))))
    return found


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Tokenized, test: Tokenized
) -> dict[str, float]:
    """Perplexities of the test windows, and what stands out in the calibration windows."""
    model.config.use_cache = False
    answered = by_length(test.take(np.arange(EVALUATED)), tokenizer, 16)
    calibrating = by_length(rows.take(np.arange(CALIBRATED)), tokenizer, 16)
    sites = all_sites(model)
    sketches = observe(model, sites, calibrating)
    weights = plan_weights(model, Uniform(), BITS, MinMax())
    plan = QuantPlan(activations=Uniform().activations(sites, sketches, BITS, MinMax()), weights=weights)

    def perplexity() -> float:
        values = predict(model, answered, (), "evaluating").logits
        return SCORES["perplexity"].total(values, np.zeros(len(values)))

    fp32 = perplexity()
    with insert(model, plan):
        w8a8 = perplexity()
    made = {name: each for name, each in sketches.items() if name.endswith((".layer.out", ".ffn.out"))}
    return {
        "perplexity": fp32,
        "perplexity_w8a8": w8a8,
        "largest": max(float(torch.maximum(each.max, -each.min).max()) for each in made.values()),
        "kurtosis": max(float(each.kurtosis()) for each in made.values()),
    }


def draw(steps: pd.DataFrame, file: Path) -> None:
    """Four small charts over the steps, a line for each kind of attention."""
    steps = steps.assign(loss_percent=100 * (steps["perplexity_w8a8"] / steps["perplexity"] - 1))
    titles = {
        "perplexity": "perplexity in FP32",
        "loss_percent": "W8A8: more perplexity in %",
        "largest": "largest |activation|",
        "kurtosis": "largest kurtosis of a site",
    }
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, (column, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        for name, part in steps.groupby("attention", sort=False):
            axes.plot(part["step"], part[column], marker="o", markersize=3, label=name)
        axes.set(
            title=title,
            xlabel="steps",
            xscale="symlog",
            yscale="linear" if column == "loss_percent" else "log",
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
