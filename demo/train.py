"""Train a demo model and write it in a published form.

Usage
-----
``python -m tellme.demo.train --out demo/model`` writes a Hugging Face ``bitnet`` folder; with ``--kind qwen3`` it is a GGUF
file of a ternary Qwen3, trained in three short runs (the model's read-me has the commands). It needs PyTorch and tokenizers (extra
``oracle``) and well under an hour of one CPU core. Everything is seeded; on the same machine and library versions the same
checkpoint comes out.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tellme.demo.files import BEGIN, END, SPECIAL_TOKENS, write_folder, write_gguf
from tellme.demo.network import BITNET, QWEN3, Kind, Network, Shape, ternary_weight
from tellme.demo.stories import stories
from tellme.golden.config import TINY, AcceleratorConfig
from tellme.host.commands.evaluate import evaluate

TRAINING_SEED, VALIDATION_SEED = 1, 2
VALIDATION_STORIES = 200
HELD_OUT = Path(__file__).parent / "heldout.txt"
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


@dataclass(frozen=True)
class Run:
    """A training, as far as it went: steps done of those that the learning rate is for, its peak, rows a step, seed; training loss
    (mean of the last `since` steps) in nats a token; minutes."""

    step: int
    steps: int
    rate: float
    batch: int
    seed: int
    training: float
    since: int
    minutes: float

    def __str__(self) -> str:
        cut = f" of {self.steps:,}" if self.step < self.steps else ""
        return (
            f"{self.step:,}{cut} steps of {self.batch} rows, peak learning rate {self.rate:g}, seed {self.seed}, "
            f"{self.minutes:.0f} minutes by the clock"
        )


def fit(
    network: Network, rows: Rows, validation: Rows, options: argparse.Namespace, before: Sequence[Run] = ()
) -> list[Run]:
    """Train in place with AdamW; weight decay, which keeps latent weights near zero, ends at 60 % of the run.

    Latent weights and runs (those before and this one, which are returned, too) are written to `options.latent`, if it is given, at
    every report.
    """
    ternary = [p for name, p in network.named_parameters() if network.kind.ternary(name)]
    others = [p for name, p in network.named_parameters() if not network.kind.ternary(name)]
    optimizer = torch.optim.AdamW(
        [{"params": ternary, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    order = random.Random(options.seed)
    queue: list[int] = []
    started, recent, runs = time.monotonic(), [], list(before)
    last = min(options.stop or options.steps, options.steps)
    for step in range(last):
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
        if (step + 1) % options.report == 0 or step + 1 == last:
            minutes = (time.monotonic() - started) / 60
            training = sum(recent) / len(recent)
            run = Run(
                step + 1,
                options.steps,
                options.learning_rate,
                options.batch,
                options.seed,
                training,
                len(recent),
                minutes,
            )
            runs = [*before, run]
            valid = validation_loss(network, validation, options.batch)
            print(
                f"step {step + 1}/{options.steps}  loss {training:.4f}  validation {valid:.4f}  "
                f"{minutes:.1f} min, {minutes / (step + 1) * (last - step - 1):.1f} left",
                flush=True,
            )
            recent.clear()
            if options.latent:
                torch.save({"network": network.state_dict(), "runs": [asdict(r) for r in runs]}, options.latent)
    return runs


README = """# {title}

{about}
It was trained for this project from nothing on **synthetic text only**: {stories:,} stories that the hand-written
grammar [`demo/stories.py`](../stories.py) produced. It knows nothing else: not other words, other plots or other
languages.

| | |
|---|---|
| Architecture | {architecture}: hidden {shape.hidden_size}, feed-forward {shape.intermediate_size} \
({activation}), {shape.num_hidden_layers} layers, {shape.num_attention_heads} heads of {shape.head_dim} with \
{shape.num_key_value_heads} key-value heads, context {shape.max_position_embeddings}, \
RoPE theta {shape.rope_theta:.0f} |
| Vocabulary | {shape.vocab_size}, byte-level BPE learned from the same stories; `<s>` is {begin} and stands before a text, \
`</s>` is {end}; embedding tied to the head |
| Weights | {ternary:,} ternary ({zeros:.0%} zero), {form}; {size:,} bytes |
| Training | quantisation-aware, straight-through estimator, AdamW, cosine; {runs}; \
{total:.1f} million tokens in rows of {tokens} |
| Training loss | {training:.4f} nats a token (mean of the last {report} steps) |
| Validation loss | {validation:.4f} nats a token, {validation_rows} rows of {tokens} tokens of stories \
not trained on |
| Held-out loss | {heldout:.4f} nats a token over the {heldout_tokens:,} tokens of \
[`demo/heldout.txt`](../heldout.txt), each story alone (PyTorch, float32); {golden:.4f} nats a token on the \
accelerator's arithmetic: `tellme eval {name} --text demo/heldout.txt --documents` |

Made with `{command}` (extra `oracle`); the losses are those of the written, packed weights.

Greedy, after "{prompt}":

> {sample}

At temperature 0.7:

> {warm}
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A demo model: what is trained, how long, how it is written and what is said of it.

    Parameters
    ----------
    steps, batch : of the training, where the command does not say others.
    write : writes the network into a folder; gives the file with the weights.
    accelerator : on which its held-out loss is computed.
    name : of `tellme run --model`. commands : options that make it, run after run.
    """

    kind: Kind
    shape: Shape
    steps: int
    batch: int
    write: Callable[[Path, Network, Tokenizer], Path]
    accelerator: AcceleratorConfig
    name: str
    commands: tuple[str, ...]
    title: str
    about: str
    architecture: str
    activation: str
    form: str


RECIPES = {
    "bitnet": Recipe(
        kind=BITNET,
        shape=Shape(),
        steps=7000,
        batch=8,
        write=write_folder,
        accelerator=TINY,
        name="demo",
        commands=("--out demo/model",),
        title="Demo model",
        about="A ternary language model (BitNet b1.58) that tells very simple stories, small enough to be simulated gate by gate.",
        architecture="Hugging Face `bitnet`",
        activation="squared ReLU",
        form="packed four to a byte with one scale a matrix; norms and embedding binary32, embedding rows on int8 grids",
    ),
    "qwen3": Recipe(
        kind=QWEN3,
        shape=Shape(num_hidden_layers=4, rms_norm_eps=1e-6),
        steps=7000,
        batch=4,
        write=write_gguf,
        accelerator=replace(TINY, weight_format="grouped"),
        name="demo-qwen3",
        commands=(
            "--kind qwen3 --steps 3500 --stop 1250 --latent first.pt --out build/first",
            "--kind qwen3 --begin first.pt --steps 900 --stop 200 --learning-rate 0.002 --seed 1 --report 100 --latent second.pt "
            "--out build/second",
            "--kind qwen3 --begin second.pt --steps 150 --learning-rate 0.001 --seed 2 --report 25 --out demo/qwen3",
        ),
        title="Demo model, Qwen3",
        about="""A ternary Qwen3 of the form of Ternary Bonsai (QK-norm, a scale for every group of weights, ternary embedding and head) that
tells very simple stories, small enough to be simulated gate by gate.""",
        architecture="GGUF `qwen3`, with QK-norm",
        activation="SiLU",
        form="those of the embedding among them, as Q2_0: packed four to a byte with a float16 scale for every 64 along the inputs; norms binary32",
    ),
}


def main() -> None:
    """Train from nothing and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train a demo model and write it in a published form.")
    parser.add_argument("--kind", choices=RECIPES, default="bitnet", help="family (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="training steps (default 7000)")
    parser.add_argument(
        "--stop", type=int, help="step to stop at, however many the learning rate is for (default: the last)"
    )
    parser.add_argument("--batch", type=int, help="rows a step (default 8, qwen3 4)")
    parser.add_argument("--stories", type=int, default=40000, help="stories to train on (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="at the peak (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default %(default)s)")
    parser.add_argument("--report", type=int, default=250, help="steps between reports (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    parser.add_argument("--latent", type=Path, help="file that keeps the latent weights at every report")
    parser.add_argument(
        "--begin", type=Path, help="such a file of another run, to begin with; with --steps 0 it is written as it is"
    )
    options = parser.parse_args()
    recipe = RECIPES[options.kind]
    options.steps = recipe.steps if options.steps is None else options.steps
    options.batch = options.batch or recipe.batch
    if not options.steps and options.begin is None:
        parser.error("--steps 0 needs --begin, the weights to write")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(options.seed)
    shape = recipe.shape

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

    network = Network(shape, recipe.kind)
    runs: list[Run] = []
    if options.begin:
        kept = torch.load(options.begin, weights_only=True)
        network.load_state_dict(kept["network"])
        runs = [Run(**r) for r in kept["runs"]]
    if options.steps:
        runs = fit(network, rows, validation, options, runs)
    if not recipe.kind.ternary_embedding:
        network.round_embedding()
    valid = validation_loss(network, validation, options.batch)
    heldout, heldout_tokens = story_loss(network, encode(tokenizer, held_out))

    options.out.mkdir(parents=True, exist_ok=True)
    path = recipe.write(options.out, network, tokenizer)
    written = path if path.suffix == ".gguf" else options.out
    golden = evaluate(str(written), HELD_OUT, recipe.accelerator, documents=True, show=False)["nll"]

    def tell(prompt: str, temperature: float) -> str:
        ids = tokenizer.encode(prompt).ids
        return tokenizer.decode(network.generate(ids, temperature=temperature, seed=options.seed, stop=END)).strip()

    weights = [p for name, p in network.named_parameters() if recipe.kind.ternary(name)]
    codes = torch.cat([ternary_weight(w.detach(), recipe.kind).sign().flatten() for w in weights])
    size = path.stat().st_size
    readme = README.format(
        title=recipe.title,
        about=recipe.about,
        architecture=recipe.architecture,
        activation=recipe.activation,
        form=recipe.form,
        name=recipe.name,
        command="`, then `".join(f"python -m tellme.demo.train {c}" for c in recipe.commands),
        shape=shape,
        begin=BEGIN,
        end=END,
        stories=len(text),
        ternary=len(codes),
        zeros=(codes == 0).float().mean().item(),
        size=size,
        runs="; then ".join(map(str, runs)),
        tokens=shape.max_position_embeddings,
        total=sum(r.step * r.batch for r in runs) * shape.max_position_embeddings / 1e6,
        training=runs[-1].training,
        report=runs[-1].since,
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
