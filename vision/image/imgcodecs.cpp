#include "vision/image/imgcodecs.h"

#include <dlfcn.h>

#include <array>
#include <filesystem>
#include <mutex>
#include <string>

#include "vision/image/imgcodecs_plugin.h"

namespace longview::vision {

namespace {

constexpr char kPluginFile[] = "liblongview_imgcodecs.so";

/// Next to the program, where packages put it, and where the build left it.
std::vector<std::filesystem::path> plugin_places() {
    std::vector<std::filesystem::path> places;
    std::error_code ignored;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored);
    if (!ignored) {
        const auto folder = program.parent_path();
        places = {folder / kPluginFile, folder / "../lib/longview" / kPluginFile};
    }
    places.emplace_back(std::filesystem::path(LONGVIEW_PLUGIN_BUILD_FOLDER) / kPluginFile);
    return places;
}

struct Plugin {
    LongviewDecode decode = nullptr;
    std::string problem;  // why decode is null
};

Plugin load_plugin() {
    Plugin plugin;
    for (const auto& path : plugin_places()) {
        std::error_code ignored;
        if (!std::filesystem::exists(path, ignored)) continue;
        // Never closed: OpenCV's libraries do not unload cleanly.
        void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            plugin.problem = std::string(
                                 "it needs OpenCV's image codecs; install the package "
                                 "libopencv-imgcodecs406 and try again (") +
                             dlerror() + ")";
            continue;
        }
        plugin.decode = reinterpret_cast<LongviewDecode>(dlsym(library, kLongviewDecodeSymbol));
        if (plugin.decode != nullptr) return plugin;
        plugin.problem = path.string() +
                         " belongs to another version of the program; install "
                         "the program again";
    }
    if (plugin.problem.empty()) {
        plugin.problem = std::string("the file ") + kPluginFile +
                         " is missing beside the program; install the program again";
    }
    return plugin;
}

const Plugin& plugin() {
    static std::mutex mutex;
    static Plugin loaded;
    const std::lock_guard lock(mutex);
    // A failure is tried again: the person may have installed the package meanwhile.
    if (loaded.decode == nullptr) loaded = load_plugin();
    return loaded;
}

struct Target {
    int width = 0, height = 0;  // that the header promised
    Pixels pixels;
};

unsigned char* allocate_pixels(void* context, int width, int height, int channels) {
    auto& target = *static_cast<Target*>(context);
    if (width != target.width || height != target.height) return nullptr;
    try {
        target.pixels.width = width;
        target.pixels.height = height;
        target.pixels.channels = channels;
        target.pixels.data =
            allocate_host(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) *
                          static_cast<std::size_t>(channels));
    } catch (const Error&) {
        return nullptr;
    }
    return target.pixels.data.as<unsigned char>();
}

}  // namespace

Pixels decode_with_imgcodecs(const std::vector<std::uint8_t>& bytes, int width, int height,
                             const FileView& file) {
    const Plugin& codecs = plugin();
    if (codecs.decode == nullptr) {
        throw Error(Category::kUnsupported,
                    std::string(file.name()) + " is a " + std::string(file.format()) +
                        " picture, which cannot be read: " + codecs.problem);
    }
    Target target{width, height, {}};
    std::array<char, 256> reason{};
    if (codecs.decode(bytes.data(), bytes.size(), allocate_pixels, &target, reason.data(),
                      reason.size()) != 0)
        file.damaged(reason.data());
    return std::move(target.pixels);
}

}  // namespace longview::vision
