#!/usr/bin/python3
"""Speed of the demo model: the PyTorch reference in resources/demo-model/train beside longview-cli.

Both run on the same cores in the same invocation, alternating, and the medians are compared.
Needs python3-torch (Debian's package); usage:

    kernels/bench/compare_model.py build/release/app/cli/longview-cli [--threads N] [--rounds N]
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "..", "resources", "demo-model")
sys.path.insert(0, os.path.join(MODEL, "train"))


class TorchReference:
    def __init__(self, threads):
        import torch
        from export import load_model
        from model import CHUNK, Generator
        torch.set_num_threads(threads)
        self.torch, self.chunk, self.generator = torch, CHUNK, Generator
        self.model = load_model(MODEL)
        self.model.eval()

    def measure(self, prompt, decode):
        """Seconds of prefill and of `decode` single steps."""
        torch = self.torch
        pad = -prompt % self.chunk
        ids = torch.randint(0, 2016, (1, prompt + pad), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            generator = self.generator(self.model, decode + 1)
            start = time.perf_counter()
            generator.start(ids, torch.tensor([prompt]))
            middle = time.perf_counter()
            for i in range(decode):
                generator.step(ids[0, i % prompt].view(1))
            end = time.perf_counter()
        self.model.tables.clear()
        return middle - start, end - middle


def ours(cli, prompt, decode, threads):
    out = subprocess.run([cli, "bench", "--json", "--lengths", str(prompt), "--decode", str(decode),
                          "--threads", str(threads), "--model", MODEL],
                         check=True, capture_output=True, text=True).stdout
    row = json.loads(out)["lengths"][0]
    return row["prefill_seconds"], row["decode_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cli")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", default="128,512,2048,8192")
    parser.add_argument("--decode", type=int, default=64)
    arguments = parser.parse_args()

    reference = TorchReference(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, "
          f"PyTorch {reference.torch.__version__}, medians of {arguments.rounds} alternating rounds")
    print(f"{'tokens':>7} {'prefill tok/s: torch':>21} {'ours':>9} {'ratio':>6} "
          f"{'decode tok/s: torch':>20} {'ours':>8} {'ratio':>6}")
    for prompt in map(int, arguments.lengths.split(",")):
        reference.measure(prompt, 4)  # warm-up
        samples = []
        for _ in range(arguments.rounds):
            samples.append(reference.measure(prompt, arguments.decode) +
                           ours(arguments.cli, prompt, arguments.decode, arguments.threads))
        tp, td, op, od = (statistics.median(column) for column in zip(*samples))
        n = arguments.decode
        print(f"{prompt:>7} {prompt / tp:>21.0f} {prompt / op:>9.0f} {tp / op:>6.2f} "
              f"{n / td:>20.1f} {n / od:>8.1f} {td / od:>6.2f}")


if __name__ == "__main__":
    main()
