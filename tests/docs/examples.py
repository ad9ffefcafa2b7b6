"""Runs the examples that the documents show and compares what they print.

An example stands in a fenced block marked `console`: lines that begin with `$ ` are commands, the
lines after one are what it prints to stdout; a line `...` stands for any lines. Commands call
packaging/run or longview-cli and are run from the repository with the program of this build.
Blocks with another mark are not run.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(?<![\w/.-])(packaging/run|(build/release/app/cli/)?longview-cli)(?![\w/.-])")


@dataclass
class Example:
    where: str
    command: str
    expected: list[str]


def read_examples(text, name):
    """The examples of one document, in order."""
    examples = []
    for fence in FENCE.finditer(text):
        line_number = text.count("\n", 0, fence.start(1)) + 1
        # A command goes on in the next line after a backslash.
        block = re.sub(r"\\\n\s*", "", fence.group(1))
        for line in block.splitlines():
            if line.startswith("$ "):
                examples.append(Example(f"{name}:{line_number}", line[2:], []))
            elif not examples or not examples[-1].where == f"{name}:{line_number}":
                raise ValueError(f"{name}:{line_number}: the block does not begin with `$ command`")
            else:
                examples[-1].expected.append(line)
    return examples


def matches(expected, printed):
    """Compares line by line; `...` stands for any lines, ends of lines and of the text do not count."""
    lines = [line.rstrip() for line in expected]
    while lines and not lines[-1]:
        lines.pop()
    parts = [r"(?:[^\n]*\n)*" if line == "..." else re.escape(line) + r"\n" for line in lines]
    got = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch("".join(parts), got) is not None


def run(example, program, root):
    """A sentence about what is wrong with the example, or None."""
    command, calls = PROGRAM.subn(shlex.quote(program), example.command)
    if calls == 0:
        return f"{example.where}: does not call packaging/run or longview-cli: {example.command}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0 and matches(example.expected, done.stdout):
        return None
    shown = "\n".join(example.expected)
    return (
        f"{example.where}: $ {example.command}\n-- the document shows\n{shown}\n"
        f"-- it ended with {done.returncode} and printed\n{done.stdout}{done.stderr}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the repository")
    parser.add_argument("program", help="longview-cli")
    parser.add_argument("documents", nargs="+", help="paths from the repository")
    args = parser.parse_args()

    wrong = 0
    for name in args.documents:
        examples = read_examples((args.root / name).read_text(encoding="utf-8"), name)
        if not examples:
            print(f"{name}: has no example to run")
            wrong += 1
        for example in examples:
            complaint = run(example, args.program, args.root)
            print(complaint or f"{example.where}: right: $ {example.command}")
            wrong += complaint is not None
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
