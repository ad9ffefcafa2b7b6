#!/usr/bin/python3
"""Times PyTorch on the GPU beside our CUDA benchmarks: the same shapes, one run, a table of ratios.

    kernels/bench/compare_cuda.py [BENCH_FOLDER]

BENCH_FOLDER holds linear_cuda_bench, experts_cuda_bench, lightning_cuda_bench and
softmax_cuda_bench (default build/release/kernels/bench). Random bf16 data; inputs rotate so that
together they exceed the L2 cache; CUDA events, medians. Lightning attention in PyTorch is the
blocked form with matmul, 256 positions a block, as the reference implementations have it.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

import torch

L2_BYTES = 256 << 20
torch.set_grad_enabled(False)


def median_seconds(work, budget=0.15):
    for i in range(3):
        work(i)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work(3)
    end.record()
    end.synchronize()
    once = begin.elapsed_time(end) * 1e-3
    batch = max(1, int(2e-3 / max(once, 2e-6)))
    samples, spent, turn = [], 0.0, 4
    while spent < budget or len(samples) < 5:
        begin.record()
        for _ in range(batch):
            work(turn)
            turn += 1
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) * 1e-3 / batch)
        spent += samples[-1] * batch
    return statistics.median(samples)


def randn(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def sets_for(bytes_each):
    return max(2, L2_BYTES // max(1, bytes_each) + 1)


def linear(n, out, into):
    count = sets_for(2 * out * into)
    x = [randn(n, into) for _ in range(count)]
    w = [randn(out, into) * 0.0125 for _ in range(count)]
    return median_seconds(lambda i: torch.nn.functional.linear(x[i % count], w[i % count]))


def sdpa(n, keys, causal):
    count = sets_for(4 * keys * 8 * 128) if n == 1 else 1
    q = [randn(1, 64, n, 128) for _ in range(count)]
    k = [randn(1, 8, keys, 128) for _ in range(count)]
    v = [randn(1, 8, keys, 128) for _ in range(count)]
    return median_seconds(lambda i: torch.nn.functional.scaled_dot_product_attention(
        q[i % count], k[i % count], v[i % count], is_causal=causal, enable_gqa=True))


def vit(tiles):
    q, k, v = (randn(tiles, 16, 577, 64) for _ in range(3))
    return median_seconds(lambda i: torch.nn.functional.scaled_dot_product_attention(q, k, v))


def lightning(n, heads=64, dim=128, block=256):
    """Blocks of `block` positions with the state going through, as in the published code."""
    q, k, v = (randn(heads, n, dim) for _ in range(3))
    slope = torch.exp2(-8.0 * torch.arange(1, heads + 1, device="cuda") / heads)[:, None, None]
    i = torch.arange(block, device="cuda", dtype=torch.float32)
    distance = i[:, None] - i[None, :]
    decay = torch.where(distance >= 0, torch.exp(-slope * distance), 0.0).to(torch.bfloat16)
    q_decay = torch.exp(-slope * (i[None, :, None] + 1)).to(torch.bfloat16)
    k_decay = torch.exp(-slope * (block - 1 - i[None, :, None])).to(torch.bfloat16)
    block_decay = torch.exp(-slope * block)
    out = torch.empty_like(q)

    def work(_):
        state = torch.zeros(heads, dim, dim, device="cuda")
        for at in range(0, n, block):
            qb, kb, vb = (t[:, at:at + block] for t in (q, k, v))
            inter = (qb * q_decay) @ state.to(torch.bfloat16)
            out[:, at:at + block] = inter + ((qb @ kb.transpose(1, 2)) * decay) @ vb
            state = block_decay * state + ((kb * k_decay).transpose(1, 2) @ vb).float()

    return median_seconds(work)


def experts(n):
    """Grouped product where PyTorch has it (8 rows and more an expert), else expert by expert."""
    w13 = randn(32, 6144, 2 * 9216) * 0.0125
    w2 = randn(32, 9216, 6144) * 0.0125
    pairs = 2 * n
    x = randn(pairs, 6144)
    if n <= 4:
        picks = [[(7 * i + 13 * j) % 32 for j in range(pairs)] for i in range(8)]

        def few(i):
            for j, e in enumerate(picks[i % 8]):
                gate, up = (x[j:j + 1] @ w13[e]).chunk(2, -1)
                (torch.nn.functional.silu(gate) * up) @ w2[e]

        return median_seconds(few)
    ends = (torch.arange(1, 33, device="cuda") * (pairs // 32)).to(torch.int32)
    product = getattr(torch, "_grouped_mm", None)
    if product is None:
        return None

    def grouped(_):
        gate, up = product(x, w13, offs=ends).chunk(2, -1)
        product(torch.nn.functional.silu(gate) * up, w2, offs=ends)

    return median_seconds(grouped)


PEERS = {
    "norm + 24576x6144, n=1": lambda: linear(1, 24576, 6144),
    "norm + qkv + gate 32768x6144, n=1": lambda: linear(1, 32768, 6144),
    "6144x8192, residual, n=1": lambda: linear(1, 6144, 8192),
    "24576x6144, n=512": lambda: linear(512, 24576, 6144),
    "24576x6144, n=4096": lambda: linear(4096, 24576, 6144),
    "24576x6144, n=16384": lambda: linear(16384, 24576, 6144),
    "experts, n=1": lambda: experts(1),
    "experts, n=128": lambda: experts(128),
    "experts, n=1024": lambda: experts(1024),
    "experts, n=8192": lambda: experts(8192),
    "experts, n=32768": lambda: experts(32768),
    "real n=1024": lambda: lightning(1024),
    "real n=4096": lambda: lightning(4096),
    "real n=32768": lambda: lightning(32768),
    "prefill n=4096": lambda: sdpa(4096, 4096, True),
    "prefill n=32768": lambda: sdpa(32768, 32768, True),
    "decode keys=4096": lambda: sdpa(1, 4096, False),
    "decode keys=131072": lambda: sdpa(1, 131072, False),
    "decode keys=1048576": lambda: sdpa(1, 1048576, False),
    "vit attention, 1 tiles": lambda: vit(1),
    "vit attention, 5 tiles": lambda: vit(5),
    "vit attention, 37 tiles": lambda: vit(37),
}


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "build/release/kernels/bench"
    table = []
    for family in ("linear", "experts", "lightning", "softmax"):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            subprocess.run([os.path.join(folder, family + "_cuda_bench"), "--json", file.name],
                           check=True)
            rows = json.load(open(file.name))["rows"]
        for row in rows:
            if row["name"] not in PEERS:
                continue
            try:
                peer = PEERS[row["name"]]()
            except torch.OutOfMemoryError:
                peer = None
            torch.cuda.empty_cache()
            table.append((family, row, peer))
    print(f"\nPyTorch {torch.__version__}, {torch.cuda.get_device_name()}; microseconds")
    print(f"{'family':10} {'shape':36} {'ours':>11} {'PyTorch':>11} {'ratio':>7}")
    for family, row, peer in table:
        theirs = f"{peer * 1e6:11.1f} {peer / row['seconds']:7.2f}" if peer else f"{'-':>11} {'-':>7}"
        print(f"{family:10} {row['name']:36} {row['seconds'] * 1e6:11.1f} {theirs}")


if __name__ == "__main__":
    main()
