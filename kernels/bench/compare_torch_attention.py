#!/usr/bin/python3
"""Times the attention operators beside PyTorch on the same shapes and prints the ratios.

usage: compare_torch_attention.py FOLDER   (where lightning_bench, softmax_bench, vit_bench are)

PyTorch (Debian's python3-torch, 1.13: no fused attention on the CPU) computes softmax attention as
matmul, softmax, matmul with the scores in memory, and lightning attention block by block (256
positions, as the model was trained) with the state in and out, or as one step for a single row.
Caches are float32 there. For each shape and number of threads the program and PyTorch run one
after the other; numbers are medians.
"""
import json
import math
import subprocess
import sys
import time

import torch

MODELS = {"demo": dict(heads=4, kv_heads=2, dim=64, rotary=32, tile=168, hidden=256, vit_heads=4),
          "real": dict(heads=64, kv_heads=8, dim=128, rotary=64, tile=336, hidden=1024,
                       vit_heads=16)}
BLOCK = 256


def median_seconds(call, total=0.3):
    call()
    samples = []
    while sum(samples) < total or len(samples) < 5:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return sorted(samples)[len(samples) // 2]


def lightning(model, values):
    heads, dim, rows = model["heads"], model["dim"], values["n"]
    q, k, v = torch.rand(3, heads, rows, dim)
    slopes = torch.tensor([0.9170132 / (1 << h % 8) for h in range(heads)]).view(heads, 1, 1)
    state = torch.rand(heads, dim, dim)
    if rows == 1:
        decay = torch.exp(-slopes)

        def step():
            nonlocal state
            state = decay * state + k.transpose(1, 2) * v
            return q @ state
        return step

    index = torch.arange(BLOCK)
    distance = index[:, None] - index[None, :]
    mask = torch.exp(-slopes * distance) * (distance >= 0)
    into = torch.exp(-slopes * (index[:, None] + 1))

    def blocks():
        s = state
        out = torch.empty(heads, rows, dim)
        for first in range(0, rows, BLOCK):
            m = min(BLOCK, rows - first)
            part = slice(first, first + m)
            qi, ki, vi = q[:, part], k[:, part], v[:, part]
            scores = (qi @ ki.transpose(1, 2)) * mask[:, :m, :m]
            out[:, part] = scores @ vi + into[:, :m] * (qi @ s)
            left = torch.exp(-slopes * (m - 1 - index[:m, None]))
            s = torch.exp(-slopes * m) * s + (left * ki).transpose(1, 2) @ vi
        return out
    return blocks


def rope_append(model, values):
    dim, half, rows, at = model["dim"], model["rotary"] // 2, values["n"], values["at"]
    q = torch.rand(rows, model["heads"], dim)
    k = torch.rand(rows, model["kv_heads"], dim)
    v = torch.rand(rows, model["kv_heads"], dim)
    cache = torch.empty(2, at + rows, model["kv_heads"], dim)
    theta = 1e7 ** (-torch.arange(half) / half)

    def turn(x, cos, sin):
        low, high = x[..., :half], x[..., half:2 * half]
        return torch.cat((low * cos - high * sin, high * cos + low * sin, x[..., 2 * half:]), -1)

    def run():
        angles = (torch.arange(at, at + rows)[:, None] * theta)[:, None]
        cos, sin = angles.cos(), angles.sin()
        cache[0, at:] = turn(k, cos, sin)
        cache[1, at:] = v
        return turn(q, cos, sin)
    return run


def softmax(model, values):
    kv_heads, dim, rows, at = model["kv_heads"], model["dim"], values["n"], values["at"]
    group = model["heads"] // kv_heads
    q = torch.rand(kv_heads, group * rows, dim)  # rows of one head after the other
    k, v = torch.rand(2, kv_heads, at + rows, dim)
    hidden = torch.ones(rows, at + rows, dtype=torch.bool).triu(at + 1).repeat(group, 1)

    def run():
        scores = (q @ k.transpose(1, 2)) * 0.0883883
        if rows > 1:
            scores.masked_fill_(hidden, -math.inf)
        return torch.softmax(scores, -1) @ v
    return run


def vit_attention(model, values):
    tokens, heads = (model["tile"] // 14) ** 2 + 1, model["vit_heads"]
    q, k, v = torch.rand(3, values["tiles"] * heads, tokens, model["hidden"] // heads)
    return lambda: torch.softmax((q @ k.transpose(1, 2)) * 0.125, -1) @ v


def patch_embed(model, values):
    size, hidden = model["tile"], model["hidden"]
    pixels = torch.full((values["tiles"], size, size, 3), 100, dtype=torch.uint8)
    weight = torch.rand(hidden, 3, 14, 14)
    first = torch.rand(values["tiles"], 1, hidden)
    positions = torch.rand((size // 14) ** 2 + 1, hidden)
    gain = torch.rand(hidden)

    def run():
        x = (pixels.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.27
        x = torch.nn.functional.conv2d(x, weight, stride=14).flatten(2).transpose(1, 2)
        x = torch.cat((first, x), 1) + positions
        return torch.nn.functional.layer_norm(x, (hidden,), gain, gain, 1e-5)
    return run


def parse(shape):
    model, *rest = shape.split()
    return MODELS[model], {k: int(v) for k, v in (x.split("=") for x in rest if "=" in x)}


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_grad_enabled(False)
    print(f"PyTorch {torch.__version__}")
    print(f"{'operator':16} {'shape':28} {'threads':>7} {'ours us':>12} {'torch us':>12} ratio")
    for program in ("lightning_bench", "softmax_bench", "vit_bench"):
        done = subprocess.run([f"{sys.argv[1]}/{program}", "--json"], check=True,
                              capture_output=True, text=True)
        for row in json.loads(done.stdout)["rows"]:
            torch.set_num_threads(row["threads"])
            model, values = parse(row["shape"])
            theirs = median_seconds(globals()[row["name"]](model, values))
            print(f"{row['name']:16} {row['shape']:28} {row['threads']:7} "
                  f"{row['seconds'] * 1e6:12.1f} {theirs * 1e6:12.1f} "
                  f"{theirs / row['seconds']:5.2f}", flush=True)


if __name__ == "__main__":
    main()
