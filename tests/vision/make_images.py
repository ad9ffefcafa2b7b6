"""Writes tests/data/images: small pictures of many kinds, and what Pillow makes of them.

Run with Pillow (9.4, Debian 12): /usr/bin/python3 tests/vision/make_images.py
expected.json gives for each file the size, the tolerance (0: exact) and the SHA-256 of the RGB
bytes on white; files with a tolerance have a lossless copy of the expected pixels, NAME.png.
Kinds that Pillow cannot write are put together here from their specification.
"""
import hashlib
import io
import json
import os
import struct
import zlib

from PIL import Image, ImageOps

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "images")
W, H = 37, 23
expected = {}


def put(name, data, pixels, tolerance=0, white=True):
    """pixels: RGB or RGBA picture as it should be seen."""
    if pixels.mode == "RGBA":
        back = Image.new("RGBA", pixels.size, (255, 255, 255, 255) if white else (0, 0, 0, 255))
        pixels = Image.composite(pixels, back, pixels.getchannel("A"))
    pixels = pixels.convert("RGB")
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)
    expected[name] = {"width": pixels.width, "height": pixels.height, "tolerance": tolerance,
                      "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    if tolerance:
        pixels.save(os.path.join(OUT, name + ".png"), optimize=True)


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def reopened(data):
    return Image.open(io.BytesIO(data))


def noise(count, seed):
    state, out = seed, []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out.append(state >> 16)
    return out


# A smooth picture without symmetry: shows wrong turns, survives lossy compression.
smooth = Image.new("RGB", (W, H))
smooth.putdata([(x * 6 + 10, y * 9 + 20, (x + 2 * y) * 2 + 30) for y in range(H) for x in range(W)])
alpha = Image.new("L", (W, H))
alpha.putdata([min(255, 7 * x) if y % 4 else 255 for y in range(H) for x in range(W)])
smooth_alpha = smooth.copy()
smooth_alpha.putalpha(alpha)


# ---- PNG -------------------------------------------------------------------
def chunk(kind, data):
    return (struct.pack(">I", len(data)) + kind + data
            + struct.pack(">I", zlib.crc32(kind + data)))


def pack_row(samples, depth):
    if depth == 16:
        return b"".join(struct.pack(">H", s) for s in samples)
    out, bits, have = bytearray(), 0, 0
    for s in samples:
        bits, have = (bits << depth) | s, have + depth
        if have == 8:
            out.append(bits)
            bits, have = 0, 0
    if have:
        out.append(bits << (8 - have))
    return bytes(out)


def filter_row(kind, row, above, step):
    out = bytearray([kind])
    for i, v in enumerate(row):
        a = row[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        p = a + b - c
        paeth = min((a, b, c), key=lambda q: abs(p - q))
        out.append((v - (0, a, b, (a + b) // 2, paeth)[kind]) & 255)
    return bytes(out)


def png(samples, width, height, channels, depth, color, interlace=0, extra=()):
    """samples[y][x * channels + c]"""
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                  (1, 0, 2, 2), (0, 1, 1, 2)]
    raw, step = b"", max(1, channels * depth // 8)
    for x0, y0, dx, dy in passes:
        above = None
        for n, y in enumerate(range(y0, height, dy)):
            row = []
            for x in range(x0, width, dx):
                row += samples[y][x * channels:(x + 1) * channels]
            if not row:
                continue
            row = pack_row(row, depth)
            raw += filter_row((n + 1) % 5, row, above or bytes(len(row)), step)
            above = row
    packed = zlib.compress(raw, 9)
    half = len(packed) // 2
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
            + b"".join(chunk(k, d) for k, d in extra)
            + chunk(b"tEXt", b"Comment\0" + b"x" * 200)
            + chunk(b"IDAT", packed[:half]) + chunk(b"IDAT", packed[half:]) + chunk(b"IEND", b""))


def make_pngs():
    kinds = {"grey": (1, 0, (1, 2, 4, 8, 16)), "rgb": (3, 2, (8, 16)), "palette": (1, 3, (1, 2, 4, 8)),
             "greyalpha": (2, 4, (8, 16)), "rgba": (4, 6, (8, 16))}
    palette = [v & 255 for v in noise(768, 5)]
    trns = [(i * 37) & 255 for i in range(256)]
    for name, (channels, color, depths) in kinds.items():
        for depth in depths:
            for interlace in (0, 1):
                values = noise(W * H * channels, depth + channels)
                rows = [[v & ((1 << depth) - 1) for v in values[y * W * channels:(y + 1) * W * channels]]
                        for y in range(H)]
                variants = [("", ())]
                entries = 1 << min(depth, 8)
                if color == 3:
                    plte = (b"PLTE", bytes(palette[:3 * entries]))
                    variants = [("", (plte,)), ("_trns", (plte, (b"tRNS", bytes(trns[:entries]))))]
                if color in (0, 2):
                    key = rows[3][5 * channels:6 * channels]
                    variants.append(("_trns", ((b"tRNS", b"".join(struct.pack(">H", k) for k in key)),)))
                for suffix, extra in variants:
                    data = png(rows, W, H, channels, depth, color, interlace, extra)
                    seen = Image.new("RGBA", (W, H))
                    pixels = []
                    for y in range(H):
                        for x in range(W):
                            s = rows[y][x * channels:(x + 1) * channels]
                            if color == 3:
                                p = palette[3 * s[0]:3 * s[0] + 3] + [trns[s[0]] if suffix else 255]
                            else:
                                eight = [v >> 8 if depth == 16 else v * 255 // ((1 << depth) - 1) for v in s]
                                a = 255
                                if color in (4, 6):
                                    a = eight.pop()
                                elif suffix and s == key:
                                    a = 0
                                p = (eight * 3 if len(eight) == 1 else eight) + [a]
                            pixels.append(tuple(p))
                    seen.putdata(pixels)
                    if depth <= 8 and not (suffix and color == 0):
                        assert reopened(data).convert("RGBA").tobytes() == seen.tobytes(), (name, depth)
                    put(f"{name}{depth}{suffix}{'_interlaced' if interlace else ''}.png", data, seen)
    short = png([[x & 15 for x in range(W)] for _ in range(H)], W, H, 1, 4, 3, 0,
                ((b"PLTE", bytes(palette[:9])),))
    seen = Image.new("RGB", (W, H))
    seen.putdata([tuple(palette[3 * (x & 15):3 * (x & 15) + 3]) if (x & 15) < 3 else (0, 0, 0)
                  for _ in range(H) for x in range(W)])
    put("palette_short.png", short, seen)


# ---- BMP -------------------------------------------------------------------
def bmp(width, height, bits, rows, header=40, compression=0, palette=b"", masks=b""):
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, 0, 0, 0,
                       len(palette) // 4, 0)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    if header > 40:
        info += masks + bytes(header - 40 - len(masks))
        masks = b""
    at = 14 + len(info) + len(masks) + len(palette)
    body = b"".join(r + bytes(-len(r) % 4) for r in rows)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + info + masks + palette + body


def make_bmps():
    put("rgb24.bmp", saved(smooth, "BMP"), smooth)
    for bits, mode in ((1, "1"), (8, "P"), (8, "L")):
        image = smooth.convert(mode)
        put(f"{mode}{bits}.bmp", saved(image, "BMP"), image.convert("RGB"))
    px = smooth.load()
    bgr = [b"".join(bytes(reversed(px[x, y])) for x in range(W)) for y in range(H)]
    put("top_down.bmp", bmp(W, -H, 24, bgr), smooth)
    put("os2.bmp", bmp(W, H, 24, bgr[::-1], header=12), smooth)
    junk = [b"".join(bytes(reversed(px[x, y])) + bytes([x]) for x in range(W)) for y in range(H)]
    put("rgbx32.bmp", bmp(W, H, 32, junk[::-1]), smooth)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    apx = alpha.load()
    rgba = [b"".join(bytes(reversed(px[x, y])) + bytes([apx[x, y]]) for x in range(W))
            for y in range(H)]
    put("rgba32.bmp", bmp(W, H, 32, rgba[::-1], header=108, compression=3, masks=masks), smooth_alpha)
    odd = struct.pack("<III", 0xFF, 0xFF00, 0xFF000000)  # red lowest, a gap, blue highest
    data = [b"".join(bytes([px[x, y][0], px[x, y][1], 7, px[x, y][2]]) for x in range(W))
            for y in range(H)]
    put("masks32.bmp", bmp(W, H, 32, data[::-1], compression=3, masks=odd), smooth)
    for name, split, compression, masks in (
            ("rgb555", (10, 5, 5, 5), 0, b""),
            ("rgb565", (11, 5, 6, 5), 3, struct.pack("<III", 0xF800, 0x07E0, 0x001F))):
        top, rb, gb, bb = split
        rows, seen = [], Image.new("RGB", (W, H))
        out = seen.load()
        for y in range(H):
            row = b""
            for x in range(W):
                r, g, b = px[x, y]
                r, g, b = r >> (8 - rb), g >> (8 - gb), b >> (8 - bb)
                row += struct.pack("<H", r << top | g << 5 | b)
                out[x, y] = (r * 255 // 31, g * 255 // ((1 << gb) - 1), b * 255 // 31)
            rows.append(row)
        put(name + ".bmp", bmp(W, H, 16, rows[::-1], compression=compression, masks=masks), seen, 1)
    colors = bytes(noise_byte & 255 for noise_byte in noise(40, 9))  # ten entries, indices up to 9
    nibbles = [[(x + y) % 10 for x in range(W)] for y in range(H)]
    seen = Image.new("RGB", (W, H))
    seen.putdata([(colors[4 * v + 2], colors[4 * v + 1], colors[4 * v]) for r in nibbles for v in r])
    put("palette4.bmp", bmp(W, H, 4, [pack_row(r, 4) for r in nibbles[::-1]], palette=colors), seen)


# ---- GIF, JPEG, WebP, TIFF ---------------------------------------------------
def make_gifs():
    many = Image.new("P", (W, H))
    many.putdata([v & 255 for v in noise(W * H, 3)])
    many.putpalette([v & 255 for v in noise(768, 4)])
    put("palette.gif", saved(many, "GIF", interlace=0), many.convert("RGB"))
    put("interlaced.gif", saved(many, "GIF", interlace=1), many.convert("RGB"))
    data = saved(many, "GIF", transparency=many.getpixel((4, 4)))
    put("transparent.gif", data, reopened(data).convert("RGBA"))
    few = smooth.quantize(3)
    put("three_colours.gif", saved(few, "GIF"), few.convert("RGB"))
    flat = Image.new("P", (300, 200), 1)  # long strings: the table fills and is cleared
    flat.putpalette([v & 255 for v in noise(768, 4)])
    flat.putdata([(x * y >> 6) & 31 for y in range(200) for x in range(300)])
    put("long.gif", saved(flat, "GIF"), flat.convert("RGB"))
    data = saved(many, "GIF", save_all=True, append_images=[flat.crop((0, 0, W, H))], duration=50)
    put("animated.gif", data, many.convert("RGB"))
    # A frame smaller than its screen leaves the rest transparent.
    whole = saved(many, "GIF", interlace=0)
    grown = bytearray(whole)
    grown[6:10] = struct.pack("<HH", W + 6, H + 5)
    at = grown.index(b"," + struct.pack("<HHHH", 0, 0, W, H))
    grown[at + 1:at + 5] = struct.pack("<HH", 4, 2)
    seen = Image.new("RGBA", (W + 6, H + 5))
    seen.paste(many.convert("RGBA"), (4, 2))
    put("small_frame.gif", bytes(grown), seen)


def make_jpegs():
    # Chroma is brought up to size differently by Pillow's libjpeg (smooth) and by stb_image.
    for name, options, tolerance in (
            ("444", {"subsampling": 0}, 3), ("422", {"subsampling": 1}, 6), ("420", {"subsampling": 2}, 6),
            ("progressive", {"subsampling": 0, "progressive": True}, 3),
            ("progressive_420", {"subsampling": 2, "progressive": True}, 6),
            ("optimised", {"subsampling": 0, "optimize": True}, 3)):
        data = saved(smooth, "JPEG", quality=92, **options)
        put(name + ".jpg", data, reopened(data).convert("RGB"), tolerance)
    grey = saved(smooth.convert("L"), "JPEG", quality=92)
    put("grey.jpg", grey, reopened(grey).convert("RGB"), 2)
    cmyk = smooth.convert("CMYK")
    cmyk.putdata([(c, m, y, (i * 3) % 90) for i, (c, m, y, _) in enumerate(cmyk.getdata())])
    data = saved(cmyk, "JPEG", quality=95)  # with Adobe's segment, inverted
    put("cmyk_adobe.jpg", data, reopened(data).convert("RGB"), 3)
    at = data.index(b"\xff\xee")
    bare = data[:at] + data[at + 2 + struct.unpack(">H", data[at + 2:at + 4])[0]:]
    put("cmyk_bare.jpg", bare, reopened(bare).convert("RGB"), 3)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        exif[0x010F] = "a camera"
        data = saved(smooth, "JPEG", quality=92, subsampling=0, exif=exif)
        put(f"exif{turn}.jpg", data, ImageOps.exif_transpose(reopened(data)).convert("RGB"), 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    put("exif6.png", saved(smooth, "PNG", exif=exif), smooth.transpose(Image.ROTATE_270))


def make_webps():
    put("lossless.webp", saved(smooth, "WEBP", lossless=True), smooth)
    put("lossless_alpha.webp", saved(smooth_alpha, "WEBP", lossless=True, exact=True), smooth_alpha)
    data = saved(smooth, "WEBP", quality=90)
    put("lossy.webp", data, reopened(data).convert("RGB"), 3)
    data = saved(smooth_alpha, "WEBP", quality=90)
    put("lossy_alpha.webp", data, reopened(data).convert("RGBA"), 3)
    exif = Image.Exif()
    exif[0x0112] = 8
    put("exif8.webp", saved(smooth, "WEBP", lossless=True, exif=exif),
        smooth.transpose(Image.ROTATE_90))
    data = saved(smooth, "WEBP", lossless=True, save_all=True,
                 append_images=[ImageOps.invert(smooth)], duration=50)
    put("animated.webp", data, smooth)


def tiff(order, entries, body):
    """entries: (tag, type, values); strip offsets are filled in."""
    code = "<" if order == b"II" else ">"
    size = {3: 2, 4: 4}
    letter = {3: "H", 4: "I"}
    extra = b""
    at = 8 + 2 + 12 * len(entries) + 4
    directory = struct.pack(code + "H", len(entries))
    total = sum(len(v) * size[t] for _, t, v in entries if len(v) * size[t] > 4)
    for tag, kind, values in entries:
        if tag == 273:
            values = [at + total]
        data = b"".join(struct.pack(code + letter[kind], v) for v in values)
        if len(data) > 4:
            field = struct.pack(code + "I", at + len(extra))
            extra += data
        else:
            field = data + bytes(4 - len(data))
        directory += struct.pack(code + "HHI", tag, kind, len(values)) + field
    return order + struct.pack(code + "HI", 42, 8) + directory + bytes(4) + extra + body


def make_tiffs():
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        put(compression + ".tif", saved(smooth, "TIFF", compression=compression), smooth)
    grey = smooth.convert("L")
    put("grey8.tif", saved(grey, "TIFF"), grey.convert("RGB"))
    bits = smooth.convert("1")
    put("bits.tif", saved(bits, "TIFF"), bits.convert("RGB"))
    few = smooth.quantize(60)
    put("palette.tif", saved(few, "TIFF"), few.convert("RGB"))
    put("rgba8.tif", saved(smooth_alpha, "TIFF"), smooth_alpha, 2)
    samples = noise(W * H * 3, 21)
    seen = Image.new("RGB", (W, H))
    seen.putdata([tuple(v >> 8 for v in samples[3 * i:3 * i + 3]) for i in range(W * H)])
    for order, name in ((b"II", "rgb16_little.tif"), (b"MM", "rgb16_big.tif")):
        code = "<H" if order == b"II" else ">H"
        body = b"".join(struct.pack(code, v) for v in samples)
        put(name, tiff(order, [(256, 3, [W]), (257, 3, [H]), (258, 3, [16, 16, 16]), (259, 3, [1]),
                               (262, 3, [2]), (273, 4, [0]), (277, 3, [3]), (278, 3, [H]),
                               (279, 4, [len(body)])], body), seen)
    body = smooth.tobytes()
    for turn, how in ((2, Image.FLIP_LEFT_RIGHT), (3, Image.ROTATE_180), (6, Image.ROTATE_270),
                      (7, Image.TRANSVERSE)):
        put(f"turn{turn}.tif",
            tiff(b"MM", [(256, 3, [W]), (257, 3, [H]), (258, 3, [8, 8, 8]), (259, 3, [1]),
                         (262, 3, [2]), (273, 4, [0]), (274, 3, [turn]), (277, 3, [3]),
                         (278, 3, [H]), (279, 4, [len(body)])], body), smooth.transpose(how))


os.makedirs(OUT, exist_ok=True)
for old in os.listdir(OUT):
    os.remove(os.path.join(OUT, old))
for make in (make_pngs, make_bmps, make_gifs, make_jpegs, make_webps, make_tiffs):
    make()
with open(os.path.join(OUT, "expected.json"), "w", encoding="utf-8") as out_file:
    json.dump({"pillow": Image.__version__, "files": expected}, out_file, indent=1, sort_keys=True)
    out_file.write("\n")
