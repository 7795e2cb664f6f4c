"""Makes the tiny Qwen2 model of the demonstration: random weights, a small tokenizer, one folder.

    python examples/countdown/tiny_model.py --out models/tiny-qwen2 --seed 1

The folder is an ordinary Hugging Face one (AutoTokenizer and AutoModelForCausalLM load it). The
tokenizer knows the fixed phrases of the Countdown task (or with --phrases those of a JSON list) and
the numbers to 199 as one token each, which keeps sequences short, and falls back to bytes, so that
it can encode any text and gives every text back unchanged. The model knows nothing: supervised
fine-tuning warms it up. With --base there is no chat template, as in a base model.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
"""What a former run wrote, and this one may replace."""

LARGEST_NUMBER = 199
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FRAME = ("system\n", "user\n", "assistant\n", "\n")
"""Of a chat."""
PHRASES = (
    # the task's sentences, see countdown.py
    "Using the numbers [",
    "], create an equation that equals ",
    ". You can use basic arithmetic operations (+, -, *, /) and each number can only be used once. "
    "Show your work in <think> </think> tags. And return the final answer in <answer> </answer> "
    "tags, for example <answer> (1 + 2) / 3 </answer>.",
    ".",
    # what completions are made of
    "<think>\n",
    "\n</think>\n<answer> ",
    " </answer>",
    " + ",
    " - ",
    " * ",
    " / ",
    " = ",
    ", ",
    ": ",
    "(",
    ")",
)
MORE = (
    " yes",
    " no",
    # around the task for a base model, see countdown.py
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer.\nUser: ",
    "\nAssistant: ",
    # tools and feedback, see demonstrations.py
    "<calculator>",
    "</calculator>",
    "<output>",
    "</output>",
    "Your answer is not right. Look at it again, and give another one.",
)
"""After the numbers."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(
    phrases: Sequence[str] = PHRASES, more: Sequence[str] = MORE, is_base: bool = False
) -> PreTrainedTokenizerFast:
    """Bytes as the base alphabet; phrases and numbers above it as longest matches."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # A digit is in the byte alphabet already; longer numbers and phrases come on top.
    numbers = [str(number) for number in range(10, LARGEST_NUMBER + 1)]
    known = dict.fromkeys((*FRAME, *phrases, *numbers, *more))
    whole = [AddedToken(text, normalized=False) for text in known]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens(whole)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = None if is_base else CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 of about one million parameters with random weights that depend on the seed only."""
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # Wider than the usual 0.02: at this width it shortens the first plateau of the warm-up.
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def check_replaceable(out: Path) -> None:
    """Raises FileExistsError unless `out` is absent, empty, or a model that this script wrote."""
    if not out.exists():
        return
    remedy = "; give another --out, or move this away"
    if not out.is_dir():
        raise FileExistsError(f"--out {out} is a file{remedy}")
    names = {path.name for path in out.iterdir() if path.is_file()}
    foreign = sorted({path.name for path in out.iterdir()} - (names & FILES))
    if foreign:
        raise FileExistsError(f"--out {out} holds {', '.join(foreign[:3])}{remedy}")
    if names and not {"config.json", "tokenizer.json"} <= names:
        raise FileExistsError(f"--out {out} holds no complete model{remedy}")


def save(out: Path, seed: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """Write the folder whole or not at all; returns the number of parameters.

    Replaces a model that it wrote before. Raises OSError, also for a folder of anything else.
    """
    check_replaceable(out)
    model = make_model(tokenizer, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        tokenizer.save_pretrained(temporary)
        model.save_pretrained(temporary)
        os.chmod(temporary, 0o755)
        if out.exists():
            shutil.rmtree(out)
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sum(parameter.numel() for parameter in model.parameters())


def _read(path: Path) -> list[str]:
    """Raises OSError, and ValueError where it is no list of texts."""
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, list) or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"--phrases {path} must be a JSON list of texts")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--seed", type=int, default=1, help="of the random weights")
    parser.add_argument("--phrases", type=Path, help="JSON list of texts that are one token each")
    parser.add_argument("--base", action="store_true", help="without a chat template")
    options = parser.parse_args(arguments)
    try:
        own = _read(options.phrases) if options.phrases else None
        phrases, more = (PHRASES, MORE) if own is None else (own, ())
        tokenizer = make_tokenizer(phrases, more, is_base=options.base)
        parameters = save(options.out, options.seed, tokenizer)
    except (OSError, ValueError) as error:
        print(f"tiny_model.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{parameters:,} parameters in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
