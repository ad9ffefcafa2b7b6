#!/usr/bin/python3
"""How far bf16 takes the PyTorch reference from the golden logits, which were made in fp32.

    tests/gpu/reference_bf16.py      from the repository's root, on a machine with PyTorch and a GPU

The reference in resources/demo-model/train computes the golden prompts without pictures in bf16 on
the GPU; printed are the largest and the mean absolute difference of the logits. A GPU's own error is
to stay within twice these (see `longview-cli selftest --golden tests/data/golden`).
"""
import json
import os
import sys

import numpy as np
import torch

sys.path.insert(0, "resources/demo-model/train")
from export import load_model  # noqa: E402
from model import CHUNK, Generator  # noqa: E402

GOLDEN = "tests/data/golden"


def main():
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model("resources/demo-model").cuda().compute_in(dtype)
        for name in sorted(os.listdir(GOLDEN)):
            with open(os.path.join(GOLDEN, name, "golden.json")) as file:
                golden = json.load(file)
            if golden["images"]:
                continue
            ids = torch.tensor(golden["input_ids"], device="cuda")
            n = len(ids)
            padded = torch.nn.functional.pad(ids, (0, -n % CHUNK))[None]
            with torch.no_grad():
                logits = Generator(model, 4).start(padded, torch.tensor([n], device="cuda"))
            want = np.fromfile(os.path.join(GOLDEN, name, "logits.f32"), dtype=np.float32)
            got = logits[0].float().cpu().numpy()
            d = np.abs(got - want)
            print(f"{str(dtype):16} {name:16} {n:6} tokens: largest {d.max():.4g}, mean {d.mean():.4g}, "
                  f"relative {np.linalg.norm(got - want) / np.linalg.norm(want):.4g}")


if __name__ == "__main__":
    main()
