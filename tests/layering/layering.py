"""Fails on an include or a link that points up the layers of the program.

The rules are the table RULES: for each folder what it may include of the program, and which foreign
libraries it must not touch. Three things are held against it: the #include lines of all sources, the
libraries each CMake target is linked with (a list that CMake writes, see CMakeLists.txt here) and
the folders that foreign headers are taken from when a source is compiled. The finished longview-cli
is asked which shared libraries it loads at its start.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Foreign:
    """How a foreign library shows in include lines, in link lines and in compiler options."""

    header: str
    link: str
    option: str = r"(?!)"
    hidden: bool = False  # a layer may use it inside, and its users still not touch it


FOREIGN = {
    "Qt": Foreign(
        r"(Qt[A-Z]\w*/|Q[A-Z]\w*$|q[a-z_]+\.h$)",
        r"Qt\d?::",
        r"(-isystem \S*/qt\d\b|-DQT_CORE_LIB)",
    ),
    "Qt Widgets": Foreign(r"(QtWidgets/|QWidget$|QApplication$|QMainWindow$)", r"Qt\d?::Widgets"),
    "OpenCV": Foreign(r"opencv2?/", r"(opencv_|OpenCV)", r"-isystem \S*/opencv4?\b"),
    "stb": Foreign(r"(stb/)?stb_\w+\.h$", r"(PkgConfig::)?stb"),
    "CUDA": Foreign(
        r"(cuda|cublas|cudnn|curand|nvrtc|nvml|nccl|nvtx|mma\.h|cooperative_groups|cub/|thrust/)",
        r"(CUDA::|cuda|cublas|nccl)",
        r"-isystem \S*/(cuda\S*|targets/[\w-]+)/include\b",
        hidden=True,
    ),
    "network": Foreign(
        r"(sys/socket\.h|sys/un\.h|netdb\.h|netinet/|arpa/inet\.h|httplib\.h|curl/|boost/asio"
        r"|QtNetwork/|QNetwork\w*$|QTcp\w+$|QUdp\w+$|QLocalS\w+$|QSsl\w+$)",
        r"(Qt\d?::Network|CURL::|curl|httplib)",
        hidden=True,
    ),
}

ERROR = "kernels/runtime/error.h"
ENGINE = "llm/engine/engine.h"


@dataclass(frozen=True)
class Rule:
    """What the sources below a path may include of the program, and which foreign things never."""

    may: tuple[str, ...]
    never: tuple[str, ...]
    but: tuple[str, ...] = ()  # exceptions to `may`
    apart: tuple[str, ...] = ()  # folders that no chain of links may reach


# The rule with the longest matching path holds.
RULES = {
    "kernels/": Rule(may=("kernels/",), never=("Qt", "OpenCV", "stb", "network")),
    "kernels/runtime/": Rule(may=("kernels/runtime/",), never=("Qt", "OpenCV", "stb", "network")),
    "kernels/cpu/": Rule(
        may=("kernels/",),
        but=("kernels/cuda/",),
        never=("Qt", "OpenCV", "stb", "network", "CUDA"),
    ),
    "vision/": Rule(may=("kernels/", "vision/"), never=("Qt", "CUDA", "network")),
    "vision/encoder/": Rule(
        may=("kernels/", "vision/encoder/", "vision/image/image.h", "vision/image/tiling.h"),
        never=("Qt", "OpenCV", "stb", "CUDA", "network"),
    ),
    "vision/image/tiling": Rule(
        may=("kernels/", "vision/"), never=("Qt", "OpenCV", "stb", "CUDA", "network")
    ),
    "vision/image/resize": Rule(
        may=("kernels/", "vision/"), never=("Qt", "OpenCV", "stb", "CUDA", "network")
    ),
    "llm/": Rule(
        may=("kernels/", "llm/", "vision/encoder/", "vision/image/image.h", "vision/image/tiling.h"),
        never=("Qt", "OpenCV", "stb", "CUDA", "network"),
    ),
    "app/": Rule(
        may=("kernels/", "vision/", "llm/", "app/"),
        but=("kernels/cuda/", "app/ui/"),
        never=("CUDA", "network"),
    ),
    "app/cli/": Rule(
        may=("kernels/", "vision/", "llm/", "app/"),
        but=("kernels/cuda/", "app/ui/", "app/client/"),
        never=("Qt", "CUDA", "network"),
    ),
    "app/core/": Rule(
        may=(ERROR, ENGINE, "vision/image/", "app/core/"), never=("Qt Widgets", "CUDA", "network")
    ),
    "app/documents/": Rule(
        may=(ERROR, "vision/image/", "app/core/", "app/documents/"), never=("CUDA", "network")
    ),
    "app/server/": Rule(
        may=("kernels/", "vision/", "llm/", "app/"),
        but=("kernels/cuda/", "app/ui/", "app/client/"),
        never=("Qt", "CUDA"),
    ),
    "app/client/": Rule(
        may=(ERROR, "app/core/", "app/client/"), never=("CUDA", "Qt Widgets"), apart=("llm/",)
    ),
    "app/ui/": Rule(
        may=(ERROR, "app/core/", "app/documents/", "app/client/", "app/ui/"),
        never=("CUDA", "network"),
        apart=("llm/",),
    ),
}
LAYERS = ("kernels", "vision", "llm", "app")

# Shared libraries that longview-cli must not load at its start: no Qt at all, and no OpenCV part
# that brings dozens of libraries along (imgcodecs is loaded when a picture needs it).
NEVER_LOADED = ("libQt", "libopencv_imgcodecs", "libopencv_highgui", "libcurl")

SOURCE_SUFFIXES = {".h", ".hpp", ".inc", ".c", ".cpp", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)


def rule_for(path):
    """The (prefix, rule) that holds for a path from the repository root; None outside the layers."""
    matching = [prefix for prefix in RULES if path.startswith(prefix)]
    return max(((prefix, RULES[prefix]) for prefix in matching), default=None, key=lambda p: len(p[0]))


def may_include(rule, target):
    if any(target.startswith(prefix) for prefix in rule.but):
        return False
    return any(target.startswith(prefix) for prefix in rule.may)


def resolve(root, source, name):
    """The included file as a path from the repository root, or None if it is not the program's."""
    for base in (root, source.parent):
        candidate = (base / name).resolve()
        if candidate.is_file() and candidate.is_relative_to(root):
            return candidate.relative_to(root).as_posix()
    # A header that does not exist (yet, or any more) still shows where it points.
    return name if name.startswith(tuple(f"{layer}/" for layer in LAYERS)) else None


def check_includes(root):
    """Yields one sentence for each include that points up or at a foreign library not allowed."""
    root = root.resolve()
    sources = (
        path
        for layer in LAYERS
        for path in sorted((root / layer).rglob("*"))
        if path.suffix in SOURCE_SUFFIXES
    )
    for source in sources:
        path = source.relative_to(root).as_posix()
        found = rule_for(path)
        text = source.read_text(encoding="utf-8", errors="replace")
        for match in INCLUDE.finditer(text):
            name = match.group(1) or match.group(2)
            where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
            yield from check_include(where, found, resolve(root, source, name), name)


def check_include(where, found, target, name):
    if found is None:
        yield f"{where}: the folder has no rule; add one to tests/layering/layering.py"
        return
    prefix, rule = found
    if target is not None and not may_include(rule, target):
        yield f"{where}: includes {target}, which {prefix} must not"
    if target is None:
        for library in rule.never:
            if re.match(FOREIGN[library].header, name):
                yield f"{where}: includes <{name}> ({library}), which {prefix} must not"


@dataclass(frozen=True)
class Target:
    """A CMake target: its folder from the repository root and what it is linked with."""

    folder: str
    links: tuple[str, ...]


def read_links(path):
    """The list that CMake wrote: lines of `target|folder|library;library;...`."""
    targets = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, folder, links = line.split("|", 2)
        # $<LINK_ONLY:lib> and the like stand for the library inside them.
        names = re.findall(r"[\w:+./@-]+", re.sub(r"\$<[A-Z_]+:", " ", links))
        targets[name] = Target(f"{folder}/", tuple(n for n in names if not n.startswith("::@")))
    return targets


def reachable(targets, name):
    """All libraries that a target pulls in, through the program's own targets."""
    seen, waiting = set(), [name]
    while waiting:
        for link in targets[waiting.pop()].links:
            if link not in seen:
                seen.add(link)
                if link in targets:
                    waiting.append(link)
    return seen


def points_up(rule, folder):
    """A link is judged by folders: one file that may be included allows its folder's library."""
    if any(folder.startswith(prefix) for prefix in rule.but):
        return True
    return not any(folder.startswith(p) or p.startswith(folder) for p in rule.may)


def check_links(targets):
    """Links between the program's folders one by one, foreign libraries through any chain."""
    for name, target in targets.items():
        found = rule_for(target.folder)
        if found is None:
            continue
        prefix, rule = found
        for link in target.links:
            folder = targets[link].folder if link in targets else ""
            if rule_for(folder) and points_up(rule, folder):
                yield f"target {name} links {link} of {folder}, which {prefix} must not"
        for link in sorted(reachable(targets, name)):
            if link in targets:
                if targets[link].folder.startswith(rule.apart):
                    yield f"target {name} reaches {link}, from which {prefix} is kept apart"
                continue
            for library in rule.never:
                foreign = FOREIGN[library]
                if re.match(foreign.link, link) and not (foreign.hidden and link not in target.links):
                    yield f"target {name} reaches {link} ({library}), which {prefix} must not"


def check_commands(root, commands):
    """Compiler options show a library that reached a target under another name."""
    root = root.resolve()
    for entry in commands:
        source = Path(entry["directory"], entry["file"]).resolve()
        if not source.is_relative_to(root):
            continue
        path = source.relative_to(root).as_posix()
        found = rule_for(path)
        for library in found[1].never if found else ():
            match = re.search(FOREIGN[library].option, entry["command"])
            if match:
                yield (
                    f"{path}: is compiled with {match.group(0)} ({library}), "
                    f"which {found[0]} must not"
                )


def loaded_libraries(program):
    """Names of the shared libraries the program loads at its start, as the loader lists them."""
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(line.split()[0]).name for line in listing.splitlines() if line.split()]


def check_loaded(program, libraries):
    for library in libraries:
        if library.startswith(NEVER_LOADED):
            yield f"{program} loads {library} at its start"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the repository")
    parser.add_argument("--links", type=Path, help="targets and their libraries, written by CMake")
    parser.add_argument("--commands", type=Path, help="compile_commands.json")
    parser.add_argument("--program", help="longview-cli, to see which libraries it loads")
    args = parser.parse_args()

    wrong = list(check_includes(args.root))
    if args.links:
        wrong += check_links(read_links(args.links))
    if args.commands:
        wrong += check_commands(args.root, json.loads(args.commands.read_text(encoding="utf-8")))
    if args.program:
        wrong += check_loaded(args.program, loaded_libraries(args.program))
    for sentence in wrong:
        print(sentence)
    print(f"layering: {len(wrong)} violations" if wrong else "layering: every arrow points down")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
