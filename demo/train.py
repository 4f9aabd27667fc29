"""Train the demo model and write it as a Hugging Face ``bitnet`` checkpoint.

Usage
-----
``python -m tellme.demo.train --out demo/model`` needs PyTorch and tokenizers (extra ``oracle``) and well under an hour of one
CPU core. Everything is seeded; on the same machine and library versions the same checkpoint comes out.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tellme.demo.network import Network, Shape, ternary_codes
from tellme.demo.stories import stories
from tellme.golden.config import TINY
from tellme.host.commands.evaluate import evaluate

TRAINING_SEED, VALIDATION_SEED = 1, 2
VALIDATION_STORIES = 200
HELD_OUT = Path(__file__).parent / "heldout.txt"
BEGIN, END = 0, 1
SPECIAL_TOKENS = ("<s>", "</s>")

PROMPTS = ("Once upon a time there was a kind girl named Mia.", "One day, a small fox", "")


def train_tokenizer(text: list[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE learned from `text`; ``<s>`` is 0, and is put before a text, and ``</s>`` is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    begin = SPECIAL_TOKENS[BEGIN]
    tokenizer.post_processor = processors.TemplateProcessing([begin, "$A"], [begin, "$A", "$B"], [(begin, BEGIN)])
    return tokenizer


def encode(tokenizer: Tokenizer, text: list[str]) -> list[list[int]]:
    """Token ids of every story, between ``<s>`` and ``</s>``."""
    return [[BEGIN, *encoding.ids, END] for encoding in tokenizer.encode_batch(text, add_special_tokens=False)]


class Rows:
    """Stories one after another, served as rows that begin where a story begins.

    A row is `tokens` + 1 ids long, so that every position of the context is trained; its first story is whole (or
    cut at the end of the context), as in use.
    """

    def __init__(self, encoded: list[list[int]], tokens: int):
        self.stream = torch.tensor([token for story in encoded for token in story])
        starts, position = [], 0
        for story in encoded:
            if position + tokens + 1 <= len(self.stream):
                starts.append(position)
            position += len(story)
        self.starts = starts
        self.tokens = tokens

    def batch(self, indices: list[int]) -> torch.Tensor:
        """Rows (batch, tokens + 1) that begin at the stories numbered `indices`."""
        return torch.stack([self.stream[self.starts[i] : self.starts[i] + self.tokens + 1] for i in indices])


def learning_rate(done: float, peak: float) -> float:
    """Warm-up over 2 % of the run, then a cosine down to 2 % of `peak`; `done` is the part of the run behind us."""
    if done < 0.02:
        return peak * (done + 0.001) / 0.021
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.02) / 0.98)))


@torch.no_grad()
def validation_loss(network: Network, rows: Rows, batch: int) -> float:
    """Nats a token over all rows."""
    count = len(rows.starts) // batch * batch
    losses = [network.loss(rows.batch(list(range(i, i + batch)))).item() for i in range(0, count, batch)]
    return sum(losses) / len(losses)


@torch.no_grad()
def story_loss(network: Network, encoded: list[list[int]]) -> tuple[float, int]:
    """Nats a token and count of tokens predicted, every story alone from ``<s>`` to ``</s>``."""
    total, count = 0.0, 0
    for story in encoded:
        row = torch.tensor([story[: network.shape.max_position_embeddings]])
        total += network.loss(row).item() * (row.shape[1] - 1)
        count += row.shape[1] - 1
    return total / count, count


def fit(network: Network, rows: Rows, validation: Rows, options: argparse.Namespace) -> float:
    """Train in place with AdamW; weight decay, which keeps latent weights near zero, ends at 60 % of the run.

    Returns
    -------
    float
        Training loss (mean of the last report), nats a token.
    """
    ternary = [p for name, p in network.named_parameters() if name.endswith("_proj.weight")]
    others = [p for name, p in network.named_parameters() if not name.endswith("_proj.weight")]
    optimizer = torch.optim.AdamW(
        [{"params": ternary, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    order = random.Random(options.seed)
    queue: list[int] = []
    started, recent, training = time.monotonic(), [], math.nan
    for step in range(options.steps):
        if len(queue) < options.batch:
            queue = list(range(len(rows.starts)))
            order.shuffle(queue)
        indices = [queue.pop() for _ in range(options.batch)]
        done = step / options.steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, options.learning_rate)
        if done >= 0.6:
            optimizer.param_groups[0]["weight_decay"] = 0.0
        loss = network.loss(rows.batch(indices))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        last = step + 1 == options.steps
        if (step + 1) % options.report == 0 or last:
            training, valid = sum(recent) / len(recent), validation_loss(network, validation, options.batch)
            minutes = (time.monotonic() - started) / 60
            print(
                f"step {step + 1}/{options.steps}  loss {training:.4f}  validation {valid:.4f}  "
                f"{minutes:.1f} min, {minutes / (step + 1) * (options.steps - step - 1):.1f} left",
                flush=True,
            )
            recent.clear()
    return training


def config(shape: Shape) -> dict[str, object]:
    """The content of ``config.json``."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **asdict(shape),
        "hidden_act": "relu2",
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "dtype": "float32",
        "torch_dtype": "float32",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write `content`, indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


README = """# Demo model

A ternary language model (BitNet b1.58) that tells very simple stories, small enough to be simulated gate by gate.
It was trained for this project from nothing on **synthetic text only**: {stories:,} stories that the hand-written
grammar [`demo/stories.py`](../stories.py) produced. It knows nothing else: not other words, other plots or other
languages.

| | |
|---|---|
| Architecture | Hugging Face `bitnet`: hidden {shape.hidden_size}, feed-forward {shape.intermediate_size} \
(squared ReLU), {shape.num_hidden_layers} layers, {shape.num_attention_heads} heads of {shape.head_dim} with \
{shape.num_key_value_heads} key-value heads, context {shape.max_position_embeddings}, \
RoPE theta {shape.rope_theta:.0f} |
| Vocabulary | {shape.vocab_size}, byte-level BPE learned from the same stories; `<s>` is {begin}, `</s>` is {end}; \
embedding tied to the head |
| Weights | {ternary:,} ternary ({zeros:.0%} zero), packed four to a byte with one scale a matrix; \
norms and embedding binary32, embedding rows on int8 grids; {size:,} bytes |
| Training | quantisation-aware, straight-through estimator, AdamW, peak learning rate {rate:g}, cosine; \
{steps:,} steps of {batch} x {tokens} tokens ({total:.0f} million), seed {seed} |
| Training loss | {training:.4f} nats a token (mean of the last {report} steps) |
| Validation loss | {validation:.4f} nats a token, {validation_rows} rows of {tokens} tokens of stories \
not trained on |
| Held-out loss | {heldout:.4f} nats a token over the {heldout_tokens:,} tokens of \
[`demo/heldout.txt`](../heldout.txt), each story alone (PyTorch, float32); {golden:.4f} nats a token on the \
accelerator's arithmetic: `tellme eval demo --text demo/heldout.txt --documents` |

Made with `python -m tellme.demo.train --out demo/model` (extra `oracle`); the losses are those of the written, packed weights.

Greedy, after "{prompt}":

> {sample}

At temperature 0.7:

> {warm}
"""


def main() -> None:
    """Train from nothing and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train the demo model and write a Hugging Face bitnet checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=7000, help="training steps (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="rows a step (default %(default)s)")
    parser.add_argument("--stories", type=int, default=40000, help="stories to train on (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at the peak (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default %(default)s)")
    parser.add_argument("--report", type=int, default=250, help="steps between reports (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    shape = Shape()

    print(f"writing {options.stories} stories", flush=True)
    held_out = HELD_OUT.read_text(encoding="utf-8").splitlines()
    unseen = stories(VALIDATION_STORIES, VALIDATION_SEED)
    reserved = {*held_out, *unseen}
    text = [story for story in stories(options.stories, TRAINING_SEED) if story not in reserved]

    print("learning the vocabulary", flush=True)
    tokenizer = train_tokenizer(text, shape.vocab_size)
    rows = Rows(encode(tokenizer, text), shape.max_position_embeddings)
    validation = Rows(encode(tokenizer, unseen), shape.max_position_embeddings)
    print(f"{len(text)} stories, {len(rows.stream)} tokens", flush=True)

    network = Network(shape)
    training = fit(network, rows, validation, options)
    network.round_embedding()
    valid = validation_loss(network, validation, options.batch)
    heldout, heldout_tokens = story_loss(network, encode(tokenizer, held_out))

    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out / "tokenizer.json"))
    state = network.packed_state()
    save_file(state, options.out / "model.safetensors", metadata={"format": "pt"})
    write_json(options.out / "config.json", config(shape))
    write_json(
        options.out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[BEGIN],
            "eos_token": SPECIAL_TOKENS[END],
            "model_max_length": shape.max_position_embeddings,
        },
    )

    golden = evaluate(str(options.out), HELD_OUT, TINY, documents=True, show=False)["nll"]

    def tell(prompt: str, temperature: float) -> str:
        ids = tokenizer.encode(prompt).ids
        return tokenizer.decode(network.generate(ids, temperature=temperature, seed=options.seed, stop=END)).strip()

    codes = torch.cat([ternary_codes(p).flatten() for name, p in network.named_parameters() if "_proj" in name])
    size = (options.out / "model.safetensors").stat().st_size
    readme = README.format(
        shape=shape,
        begin=BEGIN,
        end=END,
        stories=len(text),
        ternary=len(codes),
        zeros=(codes == 0).float().mean().item(),
        size=size,
        rate=options.learning_rate,
        steps=options.steps,
        batch=options.batch,
        tokens=shape.max_position_embeddings,
        total=options.steps * options.batch * shape.max_position_embeddings / 1e6,
        seed=options.seed,
        training=training,
        report=(options.steps - 1) % options.report + 1,
        validation=valid,
        validation_rows=len(validation.starts) // options.batch * options.batch,
        heldout=heldout,
        heldout_tokens=heldout_tokens,
        golden=golden,
        prompt=PROMPTS[0],
        sample=tell(PROMPTS[0], 0.0),
        warm=tell(PROMPTS[0], 0.7),
    )
    (options.out / "README.md").write_text(readme, encoding="utf-8")
    print(f"held-out {heldout:.4f} over {heldout_tokens} tokens, {size} bytes -> {options.out}")
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            print(f"\ntemperature {temperature}: {tell(prompt, temperature)}")


if __name__ == "__main__":
    main()
