"""Shows that examples.py finds the examples of a document and refuses those that are wrong."""

import unittest

import examples

DOCUMENT = """\
# Title

```sh
packaging/run is not run here
```

```console
$ packaging/run one
first
second
$ longview-cli two \\
    --more
```
"""


class ExamplesTest(unittest.TestCase):
    def test_reads_commands_and_what_they_print(self):
        one, two = examples.read_examples(DOCUMENT, "a.md")
        self.assertEqual((one.command, one.expected), ("packaging/run one", ["first", "second"]))
        self.assertEqual((two.command, two.expected), ("longview-cli two --more", []))

    def test_refuses_a_block_without_a_command(self):
        with self.assertRaises(ValueError):
            examples.read_examples("```console\nonly words\n```\n", "a.md")

    def test_compares_line_by_line(self):
        self.assertTrue(examples.matches(["a", "b"], "a\nb \n\n"))
        self.assertTrue(examples.matches(["a", "...", "d", ""], "a\nb\nc\nd\n"))
        self.assertTrue(examples.matches(["a", "..."], "a\n"))
        for printed in ("a\n", "a\nb\nc\n", "a\nB\n", ""):
            self.assertFalse(examples.matches(["a", "b"], printed))

    def run_example(self, command, expected):
        return examples.run(examples.Example("a.md:1", command, expected), "/bin/echo", "/")

    def test_runs_the_program_of_the_build(self):
        self.assertIsNone(self.run_example("packaging/run 'a  b'", ["a  b"]))
        self.assertIsNone(self.run_example("build/release/app/cli/longview-cli x | rev", ["x"]))

    def test_refuses_wrong_output_a_failure_and_foreign_commands(self):
        self.assertIn("shows", self.run_example("longview-cli a", ["b"]))
        self.assertIn("ended with 3", self.run_example("longview-cli a; exit 3", ["a"]))
        self.assertIn("does not call", self.run_example("echo a", ["a"]))
        self.assertIn("does not call", self.run_example("echo not-longview-cli", ["a"]))


if __name__ == "__main__":
    unittest.main()
