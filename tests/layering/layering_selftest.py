"""Shows that layering.py refuses what it must: one bad example for each kind of wrong arrow."""

import tempfile
import unittest
from pathlib import Path

import layering

# A folder tree that breaks no rule: path -> text.
GOOD = {
    "kernels/runtime/error.h": "#include <string>\n",
    "kernels/backend.h": '#include "kernels/runtime/error.h"\n',
    "kernels/cpu/norm.cpp": '#include "kernels/backend.h"\n#include <hwy/highway.h>\n',
    "kernels/cuda/norm.cu": '#include "kernels/backend.h"\n#include <cuda_runtime.h>\n',
    "vision/image/image.h": '#include "kernels/runtime/error.h"\n',
    "vision/image/tiling.h": '#include "vision/image/image.h"\n',
    "vision/image/decode.cpp": '#include "vision/image/image.h"\n#include <opencv2/core.hpp>\n',
    "vision/encoder/encoder.h": '#include "vision/image/tiling.h"\n#include "kernels/backend.h"\n',
    "llm/engine/engine.h": '#include "vision/encoder/encoder.h"\n#include "vision/image/image.h"\n',
    "app/client/client.cpp": '#include "app/client/client.h"\n#include <QtNetwork/QTcpSocket>\n',
    "app/client/client.h": "#include <QObject>\n",
    "app/cli/main.cpp": '#include "llm/engine/engine.h"\n#include <CLI/CLI.hpp>\n',
    "app/server/http.cpp": '#include "llm/engine/engine.h"\n#include <sys/socket.h>\n',
    "app/ui/window.cpp": '#include "app/client/client.h"\n#include <QtWidgets/QMainWindow>\n',
}

# (file, line put into it, a word of the refusal)
BAD_INCLUDES = [
    ("kernels/backend.h", '#include "llm/engine/engine.h"', "llm/engine/engine.h"),
    ("kernels/cpu/norm.cpp", '#include "vision/image/image.h"', "vision/image/image.h"),
    ("kernels/cpu/norm.cpp", "#include <cuda_runtime.h>", "CUDA"),
    ("kernels/cpu/norm.cpp", "#include <QString>", "Qt"),
    ("kernels/runtime/error.h", '#include "kernels/backend.h"', "kernels/backend.h"),
    ("vision/image/tiling.h", "#include <opencv2/imgproc.hpp>", "OpenCV"),
    ("vision/image/resize_bicubic.cpp", "#include <stb/stb_image_resize.h>", "stb"),
    ("vision/image/decode.cpp", '#include "llm/engine/engine.h"', "llm/engine/engine.h"),
    ("vision/image/decode.cpp", '#include "app/client/client.h"', "app/client/client.h"),
    ("vision/encoder/encoder.h", "#include <opencv2/core.hpp>", "OpenCV"),
    ("vision/encoder/encoder.h", '#include "vision/image/decode.h"', "vision/image/decode.h"),
    ("llm/engine/engine.h", '#include "app/client/client.h"', "app/client/client.h"),
    ("llm/engine/engine.h", '#include "../../app/client/client.h"', "app/client/client.h"),
    ("llm/engine/engine.h", '#  include  "app/not_there_yet.h"', "app/not_there_yet.h"),
    ("llm/engine/engine.h", '#include "vision/image/decode.h"', "vision/image/decode.h"),
    ("llm/engine/engine.h", "#include <opencv2/core.hpp>", "OpenCV"),
    ("llm/engine/engine.h", "#include <QtCore/QString>", "Qt"),
    ("llm/engine/engine.h", "#include <cublas_v2.h>", "CUDA"),
    ("llm/engine/engine.h", "#include <netdb.h>", "network"),
    ("app/cli/main.cpp", "#include <QCoreApplication>", "Qt"),
    ("app/cli/main.cpp", "#include <httplib.h>", "network"),
    ("app/cli/main.cpp", '#include "kernels/cuda/norm.h"', "kernels/cuda/norm.h"),
    ("app/cli/main.cpp", "#include <cuda_runtime.h>", "CUDA"),
    ("app/server/http.cpp", "#include <QObject>", "Qt"),
    ("app/client/client.h", '#include "llm/engine/engine.h"', "llm/engine/engine.h"),
    ("app/ui/window.cpp", '#include "llm/engine/engine.h"', "llm/engine/engine.h"),
    ("app/ui/window.cpp", "#include <QtNetwork/QNetworkRequest>", "network"),
    ("app/core/settings.cpp", "#include <QWidget>", "Qt Widgets"),
    ("app/core/settings.cpp", "#include <curl/curl.h>", "network"),
]

GOOD_LINKS = """\
longview_settings||-pthread
longview_kernels|kernels|longview_settings;PkgConfig::HWY;$<LINK_ONLY:CUDA::cudart>
longview_tiling|vision/image|longview_kernels
longview_image|vision/image|longview_tiling;opencv_core;$<LINK_ONLY:opencv_imgproc>
longview_encoder|vision/encoder|longview_kernels;longview_tiling
longview_engine|llm/engine|longview_encoder;longview_kernels;::@(0x55d0)
longview-cli|app/cli|longview_engine;longview_image;CLI11::CLI11
longview_core|app/core|longview_settings
longview_client|app/client|longview_core;Qt6::Core;Qt6::Network
longview|app/ui|longview_client;Qt6::Widgets
engine_test|tests/llm|Qt6::Test;longview_engine
"""
# (target, library added to it, a word of the refusal)
BAD_LINKS = [
    ("longview_kernels", "longview_engine", "longview_engine"),
    ("longview_kernels", "Qt6::Core", "Qt"),
    ("longview_encoder", "longview_engine", "longview_engine"),
    ("longview_tiling", "opencv_core", "OpenCV"),  # reaches the encoder and the engine
    ("longview_engine", "longview_image", "OpenCV"),
    ("longview_engine", "longview-cli", "longview-cli"),
    ("longview_engine", "CUDA::cudart", "CUDA"),
    ("longview_engine", "$<LINK_ONLY:CURL::libcurl>", "network"),
    ("longview-cli", "Qt6::Core", "Qt"),
    ("longview-cli", "CUDA::cublas", "CUDA"),
    ("longview-cli", "longview", "longview"),
    ("longview", "longview_engine", "longview_engine"),
    ("longview_core", "longview_engine", "longview_client reaches longview_engine"),
]


class LayeringTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for path, text in GOOD.items():
            self.write(path, text)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def links(self, text):
        self.write("links.txt", text)
        return list(layering.check_links(layering.read_links(self.root / "links.txt")))

    def refuse(self, found, word):
        self.assertTrue(found, "nothing was refused")
        self.assertTrue(any(word in sentence for sentence in found), found)

    def test_accepts_a_tree_whose_arrows_point_down(self):
        self.assertEqual(list(layering.check_includes(self.root)), [])

    def test_refuses_each_bad_include(self):
        for path, line, word in BAD_INCLUDES:
            with self.subTest(path=path, line=line):
                self.write(path, GOOD.get(path, "") + line + "\n")
                self.refuse(list(layering.check_includes(self.root)), word)
                self.write(path, GOOD.get(path, ""))

    def test_names_file_and_line(self):
        self.write("llm/engine/engine.h", '\n\n#include "app/client/client.h"\n')
        (sentence,) = layering.check_includes(self.root)
        self.assertTrue(sentence.startswith("llm/engine/engine.h:3: "), sentence)

    def test_refuses_a_folder_without_a_rule(self):
        self.assertIsNone(layering.rule_for("other/file.cpp"))
        (sentence,) = layering.check_include("other/file.cpp:1", None, None, "string")
        self.assertIn("no rule", sentence)

    def test_accepts_links_that_point_down(self):
        self.assertEqual(self.links(GOOD_LINKS), [])

    def test_refuses_each_bad_link(self):
        for target, library, word in BAD_LINKS:
            with self.subTest(target=target, library=library):
                text = "".join(
                    f"{line};{library}\n" if line.startswith(f"{target}|") else f"{line}\n"
                    for line in GOOD_LINKS.splitlines()
                )
                self.refuse(self.links(text), word)

    def test_refuses_compiler_options_of_a_library_under_another_name(self):
        def command(path, options):
            return {"directory": str(self.root), "file": path, "command": f"g++ {options} -c {path}"}

        good = [command("vision/image/decode.cpp", "-isystem /usr/include/opencv4")]
        self.assertEqual(list(layering.check_commands(self.root, good)), [])
        bad = [
            ("llm/engine/engine.cpp", "-isystem /usr/include/opencv4"),
            ("app/cli/main.cpp", "-DQT_CORE_LIB"),
            ("app/cli/main.cpp", "-isystem /usr/local/cuda-12.4/include"),
            ("kernels/cpu/norm.cpp", "-isystem /usr/include/x86_64-linux-gnu/qt6/QtCore"),
        ]
        for path, options in bad:
            found = list(layering.check_commands(self.root, [command(path, options)]))
            self.refuse(found, path)

    def test_refuses_libraries_loaded_at_the_start(self):
        good = ["libopencv_core.so.406", "libopencv_imgproc.so.406", "libc.so.6"]
        self.assertEqual(list(layering.check_loaded("longview-cli", good)), [])
        for name in ("libQt6Core.so.6", "libopencv_imgcodecs.so.406", "libopencv_highgui.so.406"):
            self.refuse(list(layering.check_loaded("longview-cli", [*good, name])), name)

    def test_lists_the_libraries_of_a_real_program(self):
        self.assertTrue(any(n.startswith("libc.so") for n in layering.loaded_libraries("/bin/ls")))


if __name__ == "__main__":
    unittest.main()
