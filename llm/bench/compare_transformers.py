#!/usr/bin/python3
"""Speed of transformers' MiniMaxForCausalLM beside llm-bench: the same layers, one GPU, one run.

    llm/bench/compare_transformers.py LLM_BENCH [--layers N] [--lengths N,...] [--contexts N,...]

Needs PyTorch with CUDA and transformers (5 or newer). Both sides hold random bf16 weights of the
real layer sizes and a vocabulary of 2048; prefill is the median of three reads after a warm-up,
decode the mean of some steps. Rates are for the model's 80 layers: layers measured times 80 / N.
transformers reads at most --most tokens at once here; longer prompts are left to ours.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

REAL_LAYERS = 80


def build(layers):
    config = transformers.MiniMaxConfig(
        vocab_size=2048, hidden_size=6144, intermediate_size=9216, num_hidden_layers=layers,
        num_attention_heads=64, num_key_value_heads=8, head_dim=128, num_local_experts=32,
        num_experts_per_tok=2, max_position_embeddings=131072, rms_norm_eps=1e-5, block_size=256,
        layer_types=["full_attention" if l % 8 == 7 else "linear_attention" for l in range(layers)],
        full_attn_alpha_factor=3.5565588200778455, linear_attn_alpha_factor=3.5565588200778455,
        mlp_alpha_factor=3.5565588200778455, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = transformers.MiniMaxForCausalLM(config)
    model.to_empty(device="cuda")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.fill_(1.0)
            else:
                p.normal_(0.0, 0.0125)
        # Tables that to_empty left without values are computed again.
        for module in model.modules():
            if hasattr(module, "rope_init_fn"):
                fresh, _ = module.rope_init_fn(config, "cuda")
                module.inv_freq = fresh
            if module.__class__.__name__ == "MiniMaxLightningAttention":
                slope = module.get_slope_rate().cpu()
                factors = [slope, *module.decay_factors(slope)]
                names = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
                for key, value in zip(names, factors):
                    setattr(module, key, value.to("cuda"))
    return model.eval()


def seconds(work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llm_bench")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--lengths", default="512,4096,16384,65536")
    parser.add_argument("--contexts", default="1024,65536")
    parser.add_argument("--most", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    scale = REAL_LAYERS / options.layers
    lengths = [int(n) for n in options.lengths.split(",")]
    contexts = [int(n) for n in options.contexts.split(",")]
    peer = {}
    model = build(options.layers)
    with torch.inference_mode():
        for n in (n for n in lengths if n <= options.most):
            ids = torch.randint(0, 2048, (1, n), device="cuda")
            taken = [seconds(lambda: model(ids, use_cache=True, logits_to_keep=1))[0]
                     for _ in range(4)][1:]
            peer["prefill", n] = statistics.median(taken)
        for n in (n for n in contexts if n <= options.most):
            ids = torch.randint(0, 2048, (1, n), device="cuda")
            cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            one = ids[:, :1]

            def steps(count):
                for _ in range(count):
                    model(one, past_key_values=cache, use_cache=True)

            steps(3)
            peer["decode", n] = seconds(lambda: steps(options.steps))[0] / options.steps
    del model
    torch.cuda.empty_cache()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        subprocess.run([options.llm_bench, "--layers", str(options.layers), "--lengths",
                        options.lengths, "--contexts", options.contexts, "--json", file.name],
                       check=True)
        rows = json.load(open(file.name))["rows"]
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, "
          f"{torch.cuda.get_device_name()}; tokens a second for {REAL_LAYERS} layers")
    print(f"{'':8} {'tokens':>8} {'transformers':>13} {'ours':>10} {'ratio':>7}")
    for row in rows:
        key = row["kind"], row["tokens"]
        tokens = row["tokens"] if row["kind"] == "prefill" else 1
        theirs = f"{tokens / (peer[key] * scale):13.1f}" if key in peer else f"{'-':>13}"
        ratio = f"{peer[key] / row['seconds']:7.2f}" if key in peer else f"{'-':>7}"
        print(f"{row['kind']:8} {row['tokens']:8} {theirs} {row['tokens_per_second']:10.1f} {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
