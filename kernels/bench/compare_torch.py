#!/usr/bin/python3
"""Times linear layers and experts in PyTorch beside our benchmarks and prints the ratios.

    kernels/bench/compare_torch.py [--threads N] [BENCH_FOLDER]

BENCH_FOLDER holds linear_bench and experts_bench (default build/release/kernels/bench). PyTorch
(Debian: python3-torch) computes the same shapes with the weights as floats, which is what its CPU
kernels are fast with, and as bfloat16, which is how the model is published. Both sides take the
median of repeated warm calls in one run of this script, so that the ratio holds on any machine.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import time

import torch

LONG_SECONDS = 0.03


def median_seconds(function, total=0.3):
    function()
    start = time.perf_counter()
    function()
    batch = max(1, int(20e-6 / max(time.perf_counter() - start, 1e-9)))
    samples, spent = [], 0.0
    while spent < total or len(samples) < 5:
        start = time.perf_counter()
        for _ in range(batch):
            function()
        elapsed = time.perf_counter() - start
        spent += elapsed
        samples.append(elapsed / batch)
    return statistics.median(samples)


def fields(shape):
    """"m=1 k=256 n=768 BF16" as a dict of its numbers."""
    return {key: int(value) for key, value in
            (word.split("=") for word in shape.split() if "=" in word)
            if value.isdigit()}


def rotating(make, size_bytes, cold):
    """Copies to cycle through, beyond the caches where our benchmark does the same."""
    count = (256 << 20) // size_bytes + 1 if cold else 1
    return [make() for _ in range(count)]


def linear(shape, dtype):
    size = fields(shape)
    m, k, n = size["m"], size["k"], size["n"]
    cold = k >= 1024 and m < 64
    weights = rotating(lambda: (torch.rand(n, k) * 2 - 1).to(dtype), n * k * dtype.itemsize
                       if hasattr(dtype, "itemsize") else n * k * 4, cold)
    x = (torch.rand(m, k) * 2 - 1).to(dtype)
    turn = [0]

    def call():
        turn[0] = (turn[0] + 1) % len(weights)
        torch.nn.functional.linear(x, weights[turn[0]])

    return call


def experts(shape, dtype):
    size = fields(shape)
    rows, hidden, inner, count = size["n"], size["hidden"], size["inner"], size["experts"]
    weights = [tuple((torch.rand(*s) * 2 - 1).to(dtype)
                     for s in ((inner, hidden), (inner, hidden), (hidden, inner)))
               for _ in range(count)]
    x = (torch.rand(rows, hidden) * 2 - 1).to(dtype)
    first = torch.arange(rows) % count
    ids = torch.stack([first, (first + 1) % count], 1)
    silu, product = torch.nn.functional.silu, torch.nn.functional.linear

    def call():
        out = torch.zeros_like(x)
        for e in range(count):
            picked = (ids == e).any(1).nonzero().flatten()
            if len(picked) == 0:
                continue
            w1, w3, w2 = weights[e]
            u = x[picked]
            out.index_add_(0, picked, 0.5 * product(silu(product(u, w1)) * product(u, w3), w2))
        return out

    return call


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default="build/release/kernels/bench")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"PyTorch {torch.__version__}, {options.threads} threads; times in microseconds")
    print(f"{'operator':10} {'shape':44} {'ours':>11} {'torch f32':>11} {'torch bf16':>11} "
          f"{'ratio':>6}")
    for program, name, make in (("linear_bench", "linear", linear),
                                ("experts_bench", "experts", experts)):
        output = subprocess.run([os.path.join(options.folder, program), "--json", "--threads",
                                 str(options.threads)], check=True, capture_output=True).stdout
        for row in json.loads(output)["rows"]:
            if row["name"] != name:
                continue
            torch.manual_seed(1)
            peers = [median_seconds(make(row["shape"], torch.float32)), math.inf]
            # PyTorch's bfloat16 products are plain loops: many rows take minutes and never win.
            if peers[0] < LONG_SECONDS:
                peers[1] = median_seconds(make(row["shape"], torch.bfloat16))
            print(f"{name:10} {row['shape']:44} {row['seconds'] * 1e6:11.1f} "
                  f"{peers[0] * 1e6:11.1f} {peers[1] * 1e6:11.1f} "
                  f"{min(peers) / row['seconds']:6.2f}", flush=True)
    print("ratio: the faster of PyTorch's two times over ours; above 1 we are faster")


if __name__ == "__main__":
    main()
