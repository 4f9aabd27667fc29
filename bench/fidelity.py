"""Random models of every family, plain and with outliers, on golden and in PyTorch: how near golden is to float32, beside bfloat16.

`python -m bench.fidelity` writes the tables of docs/measurements/fidelity.md; it needs the packages of `make oracle`.
`--only WORD` prints the rows of models whose name has that word in it, and writes nothing.

The models are larger than those of the tests (`SHAPES`), their parameters are bfloat16 numbers as published ones are, so that
PyTorch's bfloat16 run loses nothing by reading them. Each is run on sequences drawn from itself in float32. What is called
bfloat16 is transformers' own run in that type; first BitNet, which transformers does not know, is its LLaMA with the layers
of tests/oracle/make_families.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from tellme.demo.stories import stories
from tellme.golden.config import KV260
from tellme.golden.kv import CACHE_FORMATS, EIGHT, CacheFormat
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.checkpoint import Checkpoint, open_checkpoint, with_int8_inputs
from tellme.host.image.model import demo_folder
from tellme.host.image.screening import TEXT, with_screen
from tellme.host.machine.screening import CANDIDATES, choose
from tellme.host.talk.scoring import log_softmax
from tellme.host.talk.screening import ScreenFigures
from tellme.host.text.tokenizer import Tokenizer
from tests.oracle import heldout
from tests.oracle.families import FAMILIES
from tests.oracle.make_families import draw, write

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SEQUENCES, LENGTH = 4, 256
VOCAB = 4096
SHAPES: dict[str, dict[str, Any]] = {
    "bitnet-latent": dict(hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=2),
    "bitnet-packed": dict(hidden_size=256, intermediate_size=704, num_attention_heads=4, num_key_value_heads=1),
    "first-bitnet": dict(hidden_size=192, intermediate_size=512, num_attention_heads=2, num_key_value_heads=2),
    "llama-ternary": dict(hidden_size=256, intermediate_size=768, num_attention_heads=8, num_key_value_heads=2),
}
LAYERS = 4
HEAD = (0.3, 1.9)
"""As in tests/oracle/make_families.py."""
NLL_BOUND = 0.005
"""Change of NLL that is allowed where bfloat16 stays below it, too."""
DEMO_SEED, DEMO_STORIES = 7, 200
"""New stories for the demo's screened head, of another seed than those it was trained on."""
PAGE = Path(__file__).parent.parent / "docs" / "measurements" / "fidelity.md"
FEATURE = 3
"""The one that is made an outlier."""


def _norms(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(layer, its input norm)."""
    for layer in model.model.layers:
        yield layer, layer.input_layernorm


def _gain(factor: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for _, norm in _norms(model):
            norm.weight[FEATURE] *= factor

    return change


def _residual(model: nn.Module) -> None:
    """A feature of the residual stream is 1e4, and every norm brings it back to the size of the others, as trained models do.

    A head that is the embedding has that column, too; its norm's gain makes little of it.
    """
    rows = model.get_input_embeddings().weight
    rows[:, FEATURE] = 1e4 * (1 + 0.1 * torch.randn(len(rows)))

    def bring_back(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].flatten(0, -2)
        size = float(torch.cat([x[:, :FEATURE], x[:, FEATURE + 1 :]], 1).pow(2).mean().sqrt())
        norm.weight *= float(x.pow(2).mean().sqrt()) / size
        norm.weight[FEATURE] *= size / 1e4
        if norm is model.model.norm and model.config.tie_word_embeddings:
            norm.weight[FEATURE] *= 1e-4

    norms = [n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    hooks = [norm.register_forward_pre_hook(bring_back) for norm in [*norms, model.model.norm]]
    # With weights as they will be: ternary ones give less than latent ones.
    linears = [m for m in model.modules() if type(m) is nn.Linear and m is not model.get_output_embeddings()]
    latent = [m.weight.clone() for m in linears]
    for m in linears:
        mean = m.weight.abs().mean()
        m.weight.copy_((m.weight / mean).round().clamp(-1, 1) * mean)
    model(torch.randint(len(rows), (1, 64)))
    for m, weight in zip(linears, latent, strict=True):
        m.weight.copy_(weight)
    for hook in hooks:
        hook.remove()


def _sharp(model: nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight *= 2
        layer.self_attn.k_proj.weight *= 2


def _key(model: nn.Module) -> None:
    """A feature of the input norm is large and goes into one channel of K alone (weights are ternary, so that a row cannot be)."""
    for layer, norm in _norms(model):
        norm.weight[FEATURE] *= 30
        a = layer.self_attn
        largest = a.k_proj.weight.abs().max()
        for linear in (a.q_proj, a.k_proj, a.v_proj):
            linear.weight[:, FEATURE] = 0
        a.k_proj.weight[5, FEATURE] = largest


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "plain": lambda model: None,
    "gain x50": _gain(50),
    "residual 1e4": _residual,
    "sharp attention": _sharp,
    "gain x10": _gain(10),
    "K channel x30": _key,
}
EXTRA = "gain x10"
"""From here on: outliers besides the 16 models of the bar."""


def _made(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    def both(model: nn.Module) -> None:
        with torch.no_grad():
            change(model)
            for p in model.parameters():
                p.copy_(p.bfloat16())

    return both


@dataclass(frozen=True)
class Subject:
    """A model, its sequences [sequences, LENGTH], and logarithms of the probabilities that PyTorch gives:
    [sequences, LENGTH, vocab]. `text`: another sequence, for the calibration of the screened head."""

    name: str
    checkpoint: Checkpoint
    ids: I64
    float32: F64
    bfloat16: F64
    text: str


def _torch(model: nn.Module, ids: torch.Tensor) -> F64:
    with torch.no_grad():
        return np.stack([log_softmax(model(s[None]).logits[0].float().numpy()) for s in ids])


def subject(family: str, variant: str, sequences: int = SEQUENCES) -> Subject:
    """One of the models, and so many sequences of 256 tokens."""
    seed = 200 + 10 * FAMILIES.index(family) + list(CHANGES).index(variant)
    shape = SHAPES[family] | {"num_hidden_layers": LAYERS, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        model = write(family, folder, seed, shape=shape, head=HEAD, change=_made(CHANGES[variant]))
        with torch.no_grad():
            ids = draw(model, sequences + 1, LENGTH)
        text = " ".join(f"w{i}" for i in ids[-1].tolist())
        ids = ids[:-1]
        exact = _torch(model, ids)
        if family == "first-bitnet":
            low = model.bfloat16()
        else:
            low = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).bfloat16().eval()
        read = open_checkpoint(folder)
        held = replace(read, weights=replace(read.weights, layers=list(read.weights.layers)))
        return Subject(f"{family}, {variant}", held, ids.numpy(), exact, _torch(low, ids), text)


def golden(
    weights: ModelWeights, ids: Iterable[I64], figures: ScreenFigures | None = None, cache: CacheFormat = EIGHT
) -> list[F64]:
    """What golden makes of sequences: log probabilities [length, vocab] of each; figures of its screened head are counted in."""
    model = GoldenModel(weights, replace(KV260, hadamard=True), cache=cache)
    out = []
    for s in ids:
        model.reset()
        found = model.prefill(s, all_logits=True)
        if figures is not None:
            assert found.head_inputs is not None and found.head_scale is not None
            figures.add(found.head_inputs, found.head_scale, found.logits)
        out.append(log_softmax(found.logits))
    return out


def figures_of(checkpoint: Checkpoint, text: str = TEXT) -> ScreenFigures:
    """Of a checkpoint's screened head with 256 candidates, as `tellme convert --head screened` makes and calibrates it."""
    made = with_screen(checkpoint, KV260, text=text)[0].weights
    assert made.screen is not None
    choice = choose(checkpoint.name, made.screen, "auto", CANDIDATES, made.spec.vocab)
    return ScreenFigures(choice, made.screen.count, made.screen)


def screen_row(name: str, figures: ScreenFigures) -> str:
    """A row of the table of screened heads."""
    r = figures.report()
    cells = [
        name, str(r["planes"]), f"{r['positions']:,}", f"{r['worst_rank']:,}", str(r["missed"]), str(r["wrong"]),
        f"{r['fallbacks'] / r['positions']:.2%}", f"{r['outside_mean']:.1e}", f"{r['outside_max']:.1e}", str(r["nucleus_cut"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


@dataclass(frozen=True)
class Closeness:
    """Of a run to float32's: change of NLL; whether the likeliest token and KL(float32 || run) of each position are the same."""

    nll: float
    same: NDArray[np.bool_]
    kl: F64

    @classmethod
    def of(cls, got: Sequence[F64], want: Sequence[F64], ids: Sequence[I64]) -> Closeness:
        def nll(logs: Sequence[F64]) -> float:
            return -float(
                np.concatenate([x[np.arange(len(i) - 1), i[1:]] for x, i in zip(logs, ids, strict=True)]).mean()
            )

        a, b = np.concatenate(want), np.concatenate(got)
        return cls(nll(got) / nll(want) - 1, a.argmax(-1) == b.argmax(-1), (np.exp(a) * (a - b)).sum(-1))

    def cells(self) -> list[str]:
        """NLL, agreement, KL."""
        return [f"{self.nll:+.2%}", f"{self.same.mean():.2%}", f"{self.kl.mean():.1e}", f"{self.kl.max():.1e}"]

    def verdict(self, bfloat16: Closeness) -> str:
        """What is not as close as bfloat16; agreement with how many standard errors of the difference it is behind."""
        out = []
        if self.kl.mean() > bfloat16.kl.mean():
            out.append("KL")
        behind: F64 = bfloat16.same.astype(np.float64) - self.same
        if behind.mean() > 0:
            out.append(f"agreement ({behind.mean() / (behind.std() / len(behind) ** 0.5):.1f} s.e.)")
        if abs(bfloat16.nll) <= NLL_BOUND < abs(self.nll):
            out.append("NLL")
        return ", ".join(out) or "none"


def demo() -> tuple[list[str], str]:
    """Rows of the demo: closeness on its held-out stories, screened head on new ones."""
    checkpoint = open_checkpoint(demo_folder())
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
    held_out = [np.asarray(s)[:-1] for s in heldout.stories()]
    runs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(demo_folder(), dtype=dtype).to(dtype).eval()
        runs.append([_torch(model, torch.tensor(s)[None])[0] for s in held_out])
    rows = closeness_rows("demo", runs[0], runs[1], held_out, checkpoint)
    new = (tokenizer.encode_document(s) for s in stories(DEMO_STORIES, DEMO_SEED))
    figures = figures_of(checkpoint)
    golden(checkpoint.weights, (np.asarray(s[: checkpoint.weights.spec.max_context]) for s in new), figures)
    return rows, screen_row("demo", figures)


def closeness_rows(
    name: str,
    float32: Sequence[F64],
    bfloat16: Sequence[F64],
    ids: Sequence[I64],
    checkpoint: Checkpoint,
    figures: ScreenFigures | None = None,
) -> list[str]:
    """Rows of the table: bfloat16, golden, golden with int8 rows of the embedding."""
    low = Closeness.of(bfloat16, float32, ids)
    rows = [["bfloat16", *low.cells(), ""]]
    for kind, weights in (("golden", checkpoint.weights), ("golden, int8 rows", with_int8_inputs(checkpoint).weights)):
        got = Closeness.of(golden(weights, ids, figures if kind == "golden" else None), float32, ids)
        rows.append([kind, *got.cells(), got.verdict(low)])
    return ["| " + " | ".join([name, *row]) + " |" for row in rows]


def cache_rows(s: Subject) -> Iterator[str]:
    """Closeness with every choice of cache, for docs/measurements/kv.md."""
    for kv in (replace(c, hadamard=turned) for c in CACHE_FORMATS.values() for turned in (False, True)):
        got = golden(s.checkpoint.weights, s.ids, cache=kv)
        cells = Closeness.of(got, list(s.float32), list(s.ids)).cells()
        yield f"| {s.name} | {kv.name}{', Hadamard' if kv.hadamard else ''} | {' | '.join(cells)} |"


def main() -> None:
    """Writes the page's tables, or prints rows."""
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name has this word in it; print only")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="of 256 tokens; with other than 4, print only")
    parser.add_argument("--caches", action="store_true", help="with every choice of cache instead; print only")
    options = parser.parse_args()
    only, kept = options.only, not options.only and options.sequences == SEQUENCES
    closeness: list[str] = []
    screened: list[str] = []

    def add(rows: list[str], row: str) -> None:
        closeness.extend(rows)
        screened.append(row)
        print("\n".join([*rows, row]), flush=True)
        if kept:
            _write(closeness=closeness, screened=screened)

    for variant in CHANGES:
        if variant == EXTRA and only in "demo" and not options.caches:
            add(*demo())
        for family in SHAPES:
            name = f"{family}, {variant}"
            if options.caches and only in name:
                for row in cache_rows(subject(family, variant, options.sequences)):
                    print(row, flush=True)
            elif only in name:
                s = subject(family, variant, options.sequences)
                figures = figures_of(s.checkpoint, s.text)
                rows = closeness_rows(name, list(s.float32), list(s.bfloat16), list(s.ids), s.checkpoint, figures)
                add(rows, screen_row(name, figures))


def _write(**tables: list[str]) -> None:
    """Puts rows into the tables of the page."""
    page = PAGE.read_text()
    for name, rows in tables.items():
        head, begin, rest = page.partition(f"<!-- measured: {name} -->\n")
        title, rule, behind = rest.split("\n", 2)
        page = head + begin + "\n".join([title, rule, *rows, ""]) + behind[behind.index("<!-- end -->") :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
