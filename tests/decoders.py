"""A tiny decoder in a folder, with a tokenizer that has words for the texts of tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = "the a cat dog sat ran on under mat tree and then it was old red . ,"
WORDS = tuple(VOCABULARY.split())


def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """Words at spaces and punctuation; no token is added at either end."""
    vocabulary = {"<unk>": 0, **{word: index for index, word in enumerate(WORDS, start=1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", model_max_length=64
    )


def decoder_folder(folder: Path, layers: int = 2) -> Path:
    """Writes the tiny decoder, a Llama with grouped heads."""
    config = LlamaConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    decoder_tokenizer().save_pretrained(folder)
    return folder


def text(words: int, seed: int = 0) -> str:
    """Random words, some of them doubled by a line feed or a blank line between."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS) - 2, (words,), generator=generator).tolist()
    gaps = torch.randint(12, (words,), generator=generator).tolist()
    ends = ["\n" if gap == 0 else ", " if gap == 1 else " " for gap in gaps]
    return "".join(WORDS[pick] + end for pick, end in zip(picks, ends, strict=True))
