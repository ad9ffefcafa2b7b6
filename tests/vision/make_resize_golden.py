"""Writes tests/data/resize_golden.json: SHA-256 of Pillow's bicubic results on made-up pictures.

Run with Pillow (9.4, Debian 12): /usr/bin/python3 tests/vision/make_resize_golden.py
The pictures come from a linear congruential generator that the C++ test repeats.
"""
import hashlib
import json
import os

from PIL import Image

SIZES = [  # width, height -> width, height
    (1, 1, 1, 1), (1, 1, 7, 5), (2, 1, 3, 9), (1, 300, 14, 168), (300, 1, 168, 14),
    (3, 3, 336, 336), (5, 7, 7, 5), (16, 16, 16, 16), (17, 13, 17, 40), (17, 13, 40, 13),
    (75, 77, 168, 168), (75, 77, 164, 168), (100, 100, 336, 336), (120, 80, 119, 79),
    (120, 80, 121, 81), (200, 300, 168, 168), (234, 247, 318, 336), (255, 256, 257, 258),
    (300, 200, 336, 224), (336, 336, 168, 168), (337, 336, 336, 336), (436, 112, 504, 129),
    (500, 3, 168, 168), (3, 500, 168, 168), (640, 480, 168, 168), (640, 480, 672, 504),
    (641, 479, 336, 336), (700, 500, 13, 9), (700, 500, 1, 1), (700, 500, 700, 1),
    (700, 500, 1, 500), (701, 503, 504, 361), (33, 999, 11, 333), (999, 33, 333, 11),
    (1000, 400, 840, 336), (513, 511, 1008, 1004), (29, 31, 1008, 1077), (1023, 65, 511, 64),
    (128, 128, 127, 129), (600, 450, 59, 45), (4, 4, 3, 3), (1201, 7, 6, 1000),
]


def picture(width, height, seed):
    state, out = seed, bytearray()
    for i in range(width * height * 3):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        # Every third row is black or white, to drive the result over both ends of the range.
        row = i // (width * 3)
        out.append((state >> 24) if row % 3 else (255 if state >> 31 else 0))
    return Image.frombytes("RGB", (width, height), bytes(out))


cases = []
for seed, (w, h, nw, nh) in enumerate(SIZES):
    image = picture(w, h, seed)
    cases.append({"from": [w, h], "to": [nw, nh], "seed": seed,
                  "source_sha256": hashlib.sha256(image.tobytes()).hexdigest(),
                  "sha256": hashlib.sha256(
                      image.resize((nw, nh), Image.BICUBIC).tobytes()).hexdigest()})
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "..", "data", "resize_golden.json"), "w", encoding="utf-8") as f:
    json.dump({"pillow": Image.__version__, "cases": cases}, f, indent=1)
    f.write("\n")
