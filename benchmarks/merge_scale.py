"""How much memory and time folding an adapter takes as a model grows: `python benchmarks/merge_scale.py 1b:1,4 8b:1,2`.

For each number of layers, a base of random weights in the shape of a published model is written in bfloat16 with a
LoRA on all its projections. It is folded and proven in a process of its own, whose largest memory is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune.adapter_combining import Factors
from finetune.peft_writing import write_lora

FOLD = """
import json, resource, sys, time
from pathlib import Path
from finetune.merging_check import prove_folded
from finetune.base_files import open_base
from finetune.merging_shards import fold_shards
from finetune.peft_weights import open_peft_folder

folder = Path(sys.argv[1])
base, adapter = open_base(folder / "base"), open_peft_folder(folder / "adapter")
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
fold_shards(base, adapter, folder / "merged", "bfloat16")
folded = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
proof = prove_folded(base, adapter, folder / "merged", "bfloat16")
proven = time.perf_counter()
print(json.dumps({
    "fold_seconds": folded - began, "prove_seconds": proven - folded, "imported_kib": imported, "fold_kib": peak,
    "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "error": proof.largest_error,
}))
"""


@dataclass(frozen=True)
class Shape:
    """The sizes of one model."""

    hidden: int
    intermediate: int
    heads: int
    heads_of_keys: int
    vocabulary: int

    def projections(self) -> dict[str, tuple[int, int]]:
        """Name → (out, in) of the matrices of a layer."""
        keys = self.hidden // self.heads * self.heads_of_keys
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }


SHAPES = {
    "tiny": Shape(64, 128, 4, 2, 600),
    "1b": Shape(2048, 8192, 32, 8, 128_256),
    "8b": Shape(4096, 14_336, 32, 8, 128_256),
    "70b": Shape(8192, 28_672, 64, 8, 128_256),
}
"""Llama 3's, from the config.json of each, and one to try a program on."""


def write_base(folder: Path, shape: Shape, layers: int) -> int:
    """Write a file a layer and one for the rest; return the number of parameters."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads_of_keys,
        "num_hidden_layers": layers,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rest = {f"{name}.weight": (shape.vocabulary, shape.hidden) for name in ("model.embed_tokens", "lm_head")}
    count = 0
    for number in range(layers):
        weights = {f"model.layers.{number}.{name}.weight": size for name, size in shape.projections().items()}
        count += _write(folder / f"layer-{number:03}.safetensors", weights)
    return count + _write(folder / "rest.safetensors", rest)


def _write(file: Path, sizes: dict[str, tuple[int, int]]) -> int:
    weights = {name: torch.empty(size, dtype=torch.bfloat16).normal_(std=0.02) for name, size in sizes.items()}
    save_file(weights, file, metadata={"format": "pt"})
    return sum(weight.numel() for weight in weights.values())


def write_adapter(folder: Path, shape: Shape, layers: int, rank: int) -> None:
    """Write a LoRA on every projection, whose change is a tenth of the weights'."""
    folder.mkdir()
    factors = {
        f"model.layers.{number}.{name}": Factors(torch.randn(rank, size[1]), 5e-4 * torch.randn(size[0], rank), 1.0)
        for number in range(layers)
        for name, size in shape.projections().items()
    }
    write_lora(folder, factors, {}, ("random", None))


@dataclass(frozen=True)
class Point:
    """One measured merge."""

    shape: str
    billions: float
    """Parameters."""
    gibibytes: float
    """Largest memory of the process that folded and proved."""


def main() -> None:
    """Read the arguments, measure each number of layers of each shape, and draw the line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", nargs="*", default=["1b:1,4,16"], metavar="SHAPE:LAYERS", help="1b, 8b or 70b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--draw", type=Path, help="an .svg of memory over size")
    given = parser.parse_args()
    print(f"rank {given.rank}, torch {torch.__version__}")
    points = []
    for measured in given.measured:
        name, _, counts = measured.partition(":")
        for layers in map(int, counts.split(",")):
            points.append(measure(name, layers, given.rank))
            if given.draw:
                given.draw.write_text(draw(points), encoding="utf-8")


def measure(name: str, layers: int, rank: int) -> Point:
    """Write a base and an adapter, fold and prove them in another process, and print what it took."""
    with tempfile.TemporaryDirectory(prefix="merge-scale-") as scratch:
        folder, shape = Path(scratch), SHAPES[name]
        torch.manual_seed(0)
        parameters = write_base(folder / "base", shape, layers)
        write_adapter(folder / "adapter", shape, layers, rank)
        done = subprocess.run([sys.executable, "-c", FOLD, str(folder)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(f"{name:3} {layers:3} layers, {parameters / 1e9:6.2f} B parameters: {_line(found)}", flush=True)
    return Point(name, parameters / 1e9, found["peak_kib"] / 2**20)


def _line(found: dict[str, float]) -> str:
    memory = {name: found[f"{name}_kib"] / 2**20 for name in ("imported", "fold", "peak")}
    return (
        f"largest memory {memory['fold']:.2f} GiB to fold, {memory['peak']:.2f} GiB with the proof"
        f" ({memory['imported']:.2f} imported); {found['fold_seconds']:.0f} s + {found['prove_seconds']:.0f} s,"
        f" largest error {found['error']:.1e}"
    )


COLOURS = {"1b": "#888", "8b": "#2a7", "70b": "#c52"}
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 320, 60, 40


def draw(points: list[Point]) -> str:
    """Draw memory over parameters, a line a shape, with the goal of 12 GiB."""
    most_billions, most_gibibytes = max(point.billions for point in points) * 1.15, 13.0

    def at(billions: float, gibibytes: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 20) * billions / most_billions
        return round(x, 1), round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20) * gibibytes / most_gibibytes, 1)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>')
    for tick in range(0, 13, 3):
        x, y = at(0, tick)
        parts.append(f'<path d="M{x} {y}H{WIDTH - 20}" stroke="#ddd"/><text x="{x - 8}" y="{y + 4}" font-size="12"')
        parts.append(f' text-anchor="end">{tick}</text>')
    x, y = at(0, 12)
    parts.append(f'<path d="M{x} {y}H{WIDTH - 20}" stroke="#c00" stroke-dasharray="4"/>')
    parts.append(f'<text x="{x + 6}" y="{y + 15}" font-size="12" fill="#c00">goal: 12 GiB</text>')
    for name in dict.fromkeys(point.shape for point in points):
        line = [at(point.billions, point.gibibytes) for point in points if point.shape == name]
        path = " ".join(f"{x},{y}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{COLOURS[name]}"/>' for x, y in line]
        x, y = line[-1]
        parts.append(f'<text x="{x + 7}" y="{y - 6}" font-size="12" fill="{COLOURS[name]}">{name} shape</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" font-size="12" text-anchor="middle">')
    parts.append(f"billion parameters folded (0 to {most_billions:.1f}); left: largest memory in GiB</text></svg>")
    return "".join(parts) + "\n"


if __name__ == "__main__":
    main()
