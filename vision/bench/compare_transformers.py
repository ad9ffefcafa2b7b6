#!/usr/bin/python3
"""Times transformers' CLIP tower with the projector beside vision-bench, in one run.

    vision/bench/compare_transformers.py VISION_BENCH [--compile]

Random bf16 weights, ViT-L/14 at 336 pixels and a projector to 6144; tiles already on the device for
PyTorch, still in host memory for ours. --compile adds torch.compile, which takes a minute to start.
"""
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel


def main():
    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                              num_attention_heads=16, image_size=336, patch_size=14,
                              projection_dim=768, hidden_act="gelu")
    tower = CLIPVisionModel(config).to("cuda", torch.bfloat16).eval()
    projector = torch.nn.Sequential(torch.nn.Linear(1024, 6144), torch.nn.GELU(),
                                    torch.nn.Linear(6144, 6144)).to("cuda", torch.bfloat16)

    def encode(pixels):
        return projector(tower(pixels).last_hidden_state[:, 1:])

    forms = {"eager": encode}
    if "--compile" in sys.argv:
        forms["compiled"] = torch.compile(encode)
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([sys.argv[1], "cuda", "--json", file.name], check=True)
        rows = json.load(open(file.name))["rows"]
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}; tiles a second")
    for row in rows:
        n = row["tiles"]
        pixels = torch.randn(n, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
        line = f"{n:3} tiles: ours {n / row['seconds']:7.0f}"
        with torch.inference_mode():
            for name, form in forms.items():
                samples = []
                for i in range(13):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    form(pixels)
                    torch.cuda.synchronize()
                    if i >= 3:
                        samples.append(time.perf_counter() - start)
                peer = statistics.median(samples)
                line += f"   {name} {n / peer:7.0f}, ratio {peer / row['seconds']:.2f}"
        print(line)


if __name__ == "__main__":
    main()
