// Speed of the vision tower and projector at the real size (ViT-L/14-336, model-spec 7.5) with
// random weights, tiles in host memory to features in device memory.
//
//   vision-bench [cpu|cuda] [--json FILE]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "kernels/runtime/thread_pool.h"
#include "vision/encoder/encoder.h"
#include "vision/image/tiling.h"

namespace longview::vision {
namespace {

using Clock = std::chrono::steady_clock;

constexpr VisionConfig kConfig{.hidden_size = 1024,
                               .intermediate_size = 4096,
                               .num_hidden_layers = 24,
                               .num_attention_heads = 16,
                               .num_channels = 3,
                               .image_size = 336,
                               .patch_size = 14,
                               .layer_norm_eps = 1e-5F,
                               .text_hidden_size = 6144};

/// Random values in the shape that a name stands for.
class RandomSource final : public WeightSource {
  public:
    RandomSource() : values_(std::size_t{6144} * 6144) {
        std::uint64_t state = 1;
        for (std::uint16_t& v : values_) {
            state = state * 6364136223846793005U + 1442695040888963407U;
            // Sign, an exponent for numbers from 1/64 to 1/16, seven bits of fraction.
            v = static_cast<std::uint16_t>((state >> 63 << 15) | ((121 + (state >> 40) % 2) << 7) |
                                           (state >> 33 & 0x7FU));
        }
    }
    HostTensor tensor(std::string_view name) const override {
        const auto ends = [&](std::string_view tail) { return name.ends_with(tail); };
        const std::int64_t h = kConfig.hidden_size;
        const std::int64_t wide = kConfig.intermediate_size;
        const std::int64_t text = kConfig.text_hidden_size;
        if (ends("patch_embedding.weight")) return make({h, 3, 14, 14});
        if (ends("position_embedding.weight")) return make({577, h});
        if (ends("fc1.weight")) return make({wide, h});
        if (ends("fc1.bias")) return make({wide});
        if (ends("fc2.weight")) return make({h, wide});
        if (ends("linear_1.weight")) return make({text, h});
        if (ends("linear_2.weight")) return make({text, text});
        if (ends("_proj.weight")) return make({h, h});
        if (ends("linear_1.bias") || ends("linear_2.bias") || name == "image_newline")
            return make({text});
        return make({h});  // norms and the biases of the tower
    }

  private:
    HostTensor make(std::initializer_list<std::int64_t> shape) const {
        HostTensor t{.data = values_.data(), .dtype = DType::kBF16};
        for (const std::int64_t n : shape) t.shape[static_cast<std::size_t>(t.rank++)] = n;
        return t;
    }
    std::vector<std::uint16_t> values_;
};

double seconds_of(Encoder& encoder, kernels::Backend& backend, const TiledImage& image,
                  Matrix out) {
    std::vector<double> samples;
    for (int round = 0; round < 12; ++round) {
        const Clock::time_point start = Clock::now();
        encoder.encode(image, out);
        backend.synchronize();
        if (round >= 2)
            samples.push_back(std::chrono::duration<double>(Clock::now() - start).count());
        if (round >= 4 && samples.back() > 2.0) break;  // a slow device: three samples do
    }
    std::sort(samples.begin(), samples.end());
    return samples[samples.size() / 2];
}

int run(std::string_view device, const std::string& json_path) {
    ThreadPool pool(0);
    const std::unique_ptr<kernels::Backend> backend =
        device == "cpu" ? kernels::make_cpu_backend(pool) : kernels::make_cuda_backend();
    std::printf("%s\n", backend->device().name.c_str());
    std::string json;
    const RandomSource source;
    for (const int side : {1, 2, 6}) {
        PreprocessConfig preprocess{.tile_size = 336,
                                    .patch_size = 14,
                                    .mean = {0.48F, 0.46F, 0.41F},
                                    .std = {0.27F, 0.26F, 0.28F},
                                    .grids = {{336 * side, 336 * side}}};
        Encoder encoder(*backend, kConfig, preprocess, source);
        TiledImage image{.plan = plan_tiles({336 * side, 336 * side}, preprocess), .tiles = {}};
        const int views = image.plan.views();
        image.tiles.resize(static_cast<std::size_t>(views) * 336 * 336 * 3);
        for (std::size_t i = 0; i < image.tiles.size(); ++i)
            image.tiles[i] = static_cast<std::uint8_t>(i * 2654435761U >> 24);
        const DType dtype = backend->activation_dtype();
        const std::int64_t width = kConfig.text_hidden_size;
        const Buffer rows =
            backend->allocate(static_cast<std::size_t>(image.plan.tokens * width) * size_of(dtype));
        const double s = seconds_of(encoder, *backend, image,
                                    {rows.data(), dtype, image.plan.tokens, width, width});
        std::printf("%3d tiles %10.2f ms %10.0f tiles/s\n", views, s * 1e3, views / s);
        json += (json.empty() ? "" : ", ") + std::string("{\"tiles\": ") + std::to_string(views) +
                ", \"seconds\": " + std::to_string(s) + "}";
    }
    if (!json_path.empty()) std::ofstream(json_path) << "{\"rows\": [" << json << "]}\n";
    return 0;
}

}  // namespace
}  // namespace longview::vision

int main(int argc, char** argv) {
    std::string_view device = "cuda";
    std::string json;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        if (word == "cpu" || word == "cuda") {
            device = word;
        } else if (word == "--json" && i + 1 < argc) {
            json = argv[++i];
        } else {
            std::fprintf(stderr, "usage: vision-bench [cpu|cuda] [--json FILE]\n");
            return 2;
        }
    }
    try {
        return longview::vision::run(device, json);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
