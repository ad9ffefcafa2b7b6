#include "llm/checkpoint/checkpoint.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/bus_guard.h"
#include "llm/checkpoint/fingerprint.h"
#include "llm/checkpoint/mapped_file.h"
#include "llm/checkpoint/safetensors.h"
#include "llm/checkpoint/shard_index.h"
#include "llm/checkpoint/strict_json.h"
#include "llm/checkpoint/tensor_names.h"

namespace longview::llm {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

[[noreturn]] void fail(Category category, const std::string& sentence, const fs::path& path,
                       const std::string& tensor = {}) {
    Error::Context context{{"path", path.string()}};
    if (!tensor.empty()) context.emplace_back("tensor", tensor);
    throw Error(category, sentence, std::move(context));
}

std::string shard_label(const std::string& file) {
    return "Shard " + file;
}

std::string quote_name(std::string_view name) {
    return quote_for_message(name, 120);
}

std::string shape_text(const std::int64_t* shape, std::size_t rank) {
    std::string text = "[";
    for (std::size_t i = 0; i < rank; ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
    }
    return text + "]";
}

void check_folder(const fs::path& folder) {
    std::error_code code;
    const fs::file_status status = fs::status(folder, code);
    if (!fs::exists(status)) {
        fail(Category::kNotFound, "The model folder " + folder.string() + " does not exist.",
             folder);
    }
    if (!fs::is_directory(status)) {
        fail(Category::kInput,
             folder.string() +
                 " is a file; name the folder that holds config.json and the "
                 "model's .safetensors files.",
             folder);
    }
}

/// Whether names look like those of a converted or a text-only checkpoint.
bool is_other_layout(std::string_view name) {
    return name.starts_with("model.") || name.starts_with("lm_head.");
}

/// Every expected tensor and no other is named. `source` is the file that names them.
void check_names(const std::map<std::string, std::string, std::less<>>& weight_map,
                 const std::map<std::string_view, const TensorSpec*>& expected,
                 const fs::path& source) {
    const std::string* first_extra = nullptr;
    std::size_t known = 0, extra = 0;
    for (const auto& [name, file] : weight_map) {
        if (expected.contains(name)) {
            ++known;
        } else if (++extra == 1) {
            first_extra = &name;
        }
    }
    const std::string hint =
        first_extra != nullptr && is_other_layout(*first_extra)
            ? " The names are those of a converted or text-only checkpoint; the layout published "
              "as MiniMaxAI/MiniMax-VL-01 is needed."
            : "";
    if (known < expected.size()) {
        const auto missing = std::find_if(expected.begin(), expected.end(), [&](const auto& item) {
            return !weight_map.contains(item.first);
        });
        fail(Category::kInput,
             source.string() + ": " + std::to_string(expected.size() - known) + " of the " +
                 std::to_string(expected.size()) +
                 " tensors that config.json asks for are missing, the first is " +
                 quote_name(missing->first) + "." + hint,
             source, std::string(missing->first));
    }
    if (extra > 0) {
        fail(Category::kInput,
             source.string() + ": " + std::to_string(extra) +
                 " tensors are not part of a model with this config.json, the first is " +
                 quote_name(*first_extra) + "." + hint,
             source, *first_extra);
    }
}

}  // namespace

struct Checkpoint::Impl {
    struct Shard {
        std::string name;
        MappedFile file;
        std::vector<StoredTensor> tensors;  // moved to `located` once they are checked
    };
    struct Located {
        StoredTensor stored;
        std::size_t shard = 0;
    };

    fs::path folder;
    ModelConfig config;
    std::vector<Shard> shards;
    std::vector<Located> tensors;  // by name
    std::unordered_map<std::string_view, std::size_t> by_name;
    std::vector<std::string> problems;
    mutable std::once_flag fingerprint_made;
    mutable std::string fingerprint;

    void open_all();
    ShardIndex read_index();
    void check_shards_exist(const std::set<std::string_view>& files) const;
    void open_shard(const std::string& file);
    void check_shards_against_index(const ShardIndex& index) const;
    void locate_tensors(const std::map<std::string_view, const TensorSpec*>& expected);
    void note_problems(const ShardIndex& index);
    void set_read_ahead(bool on) const;
    HostTensor host_tensor(const Located& located) const;
};

void Checkpoint::Impl::open_all() {
    check_folder(folder);
    config = load_config(folder);
    const std::vector<TensorSpec> specs = expected_tensors(config);
    std::map<std::string_view, const TensorSpec*> expected;
    for (const TensorSpec& spec : specs) expected.emplace(spec.name, &spec);

    const ShardIndex index = read_index();
    check_names(index.weight_map, expected, folder / (shards.empty() ? kIndexName : kSingleName));
    if (shards.empty()) {
        std::set<std::string_view> files;
        for (const auto& [tensor, file] : index.weight_map) files.insert(file);
        check_shards_exist(files);
        for (const std::string_view file : files) open_shard(std::string(file));
        check_shards_against_index(index);
    }
    locate_tensors(expected);
    note_problems(index);
    for (const Shard& shard : shards) shard.file.check_unchanged();
    set_read_ahead(true);
}

void Checkpoint::Impl::set_read_ahead(bool on) const {
    for (const Shard& shard : shards) shard.file.set_read_ahead(on);
}

/// The index, or what it would be for a single file, which is then opened.
ShardIndex Checkpoint::Impl::read_index() {
    std::error_code code;
    const fs::path path = folder / kIndexName;
    if (fs::exists(path, code)) {
        return parse_shard_index(read_whole_file(path, kMaxHeaderBytes), path.string());
    }
    if (!fs::exists(folder / kSingleName, code)) {
        fail(Category::kNotFound,
             folder.string() + " holds neither " + kIndexName + " nor " + kSingleName +
                 ": the download is incomplete, or this is not a folder of safetensors.",
             folder);
    }
    open_shard(kSingleName);
    ShardIndex index;
    for (const StoredTensor& tensor : shards.front().tensors) {
        index.weight_map.emplace(tensor.name, kSingleName);
    }
    return index;
}

void Checkpoint::Impl::check_shards_exist(const std::set<std::string_view>& files) const {
    if (files.size() > static_cast<std::size_t>(bus_guard::kMaxRanges)) {
        fail(Category::kUnsupported,
             std::string(kIndexName) + " names " + std::to_string(files.size()) +
                 " files; at most " + std::to_string(bus_guard::kMaxRanges) + " are supported.",
             folder / kIndexName);
    }
    std::vector<std::string_view> missing;
    std::error_code code;
    std::copy_if(files.begin(), files.end(), std::back_inserter(missing),
                 [&](std::string_view file) { return !fs::exists(folder / file, code); });
    if (missing.empty()) return;
    fail(Category::kNotFound,
         shard_label(std::string(missing.front())) + " is missing from " + folder.string() + " (" +
             std::to_string(missing.size()) + " of " + std::to_string(files.size()) +
             " shards are): the download is incomplete. Nothing was loaded.",
         folder / missing.front());
}

void Checkpoint::Impl::open_shard(const std::string& file) {
    MappedFile mapped(folder / file);
    std::vector<StoredTensor> stored = read_safetensors_header(mapped.bytes(), shard_label(file));
    shards.push_back({file, std::move(mapped), std::move(stored)});
}

void Checkpoint::Impl::check_shards_against_index(const ShardIndex& index) const {
    std::set<std::string_view> found;
    for (const Shard& shard : shards) {
        for (const StoredTensor& tensor : shard.tensors) {
            const auto place = index.weight_map.find(tensor.name);
            if (place == index.weight_map.end() || place->second != shard.name) {
                const std::string cause = place == index.weight_map.end()
                                              ? "which the index does not name"
                                              : "which the index places in " + place->second;
                fail(Category::kInput,
                     shard_label(shard.name) + " holds " + quote_name(tensor.name) + ", " + cause +
                         ": files were swapped or come from different models.",
                     folder / shard.name, tensor.name);
            }
            found.insert(tensor.name);
        }
    }
    for (const auto& [name, file] : index.weight_map) {
        if (found.contains(name)) continue;
        fail(Category::kInput,
             shard_label(file) + " lacks " + quote_name(name) + ", which the index places there (" +
                 std::to_string(index.weight_map.size() - found.size()) +
                 " tensors are missing from their shards).",
             folder / file, name);
    }
}

void Checkpoint::Impl::locate_tensors(
    const std::map<std::string_view, const TensorSpec*>& expected) {
    for (std::size_t i = 0; i < shards.size(); ++i) {
        for (StoredTensor& tensor : shards[i].tensors) {
            const std::vector<std::int64_t>& shape = expected.at(tensor.name)->shape;
            const auto rank = static_cast<std::size_t>(tensor.rank);
            if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(),
                            tensor.shape.begin() + tensor.rank)) {
                fail(Category::kInput,
                     shard_label(shards[i].name) + ": tensor " + quote_name(tensor.name) +
                         " has shape " + shape_text(tensor.shape.data(), rank) +
                         ", but config.json asks for " + shape_text(shape.data(), shape.size()) +
                         ".",
                     folder / shards[i].name, tensor.name);
            }
            tensors.push_back({std::move(tensor), i});
        }
        shards[i].tensors = {};
    }
    std::sort(tensors.begin(), tensors.end(),
              [](const Located& a, const Located& b) { return a.stored.name < b.stored.name; });
    by_name.reserve(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) by_name.emplace(tensors[i].stored.name, i);
}

/// What is odd but harmless.
void Checkpoint::Impl::note_problems(const ShardIndex& index) {
    std::uint64_t bytes = 0;
    for (const Located& tensor : tensors) bytes += tensor.stored.size_bytes;
    if (index.total_size && *index.total_size != bytes) {
        problems.push_back(std::string(kIndexName) + ": metadata.total_size is " +
                           std::to_string(*index.total_size) + ", but the tensors have " +
                           std::to_string(bytes) + " bytes");
    }
    std::error_code code;
    std::vector<std::string> unused;
    for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
         entry.increment(code)) {
        const std::string name = entry->path().filename().string();
        const bool is_used = std::any_of(shards.begin(), shards.end(),
                                         [&](const Shard& shard) { return shard.name == name; });
        if (name.ends_with(".safetensors") && !is_used) unused.push_back(name);
    }
    if (!unused.empty()) {
        problems.push_back(std::to_string(unused.size()) +
                           " .safetensors files are not used, the first is " +
                           quote_name(*std::min_element(unused.begin(), unused.end())));
    }
}

HostTensor Checkpoint::Impl::host_tensor(const Located& located) const {
    HostTensor tensor;
    tensor.data = shards[located.shard].file.bytes().data() + located.stored.offset;
    tensor.dtype = located.stored.dtype;
    tensor.rank = located.stored.rank;
    tensor.shape = located.stored.shape;
    return tensor;
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::~Checkpoint() = default;

std::unique_ptr<Checkpoint> Checkpoint::open(const fs::path& folder) {
    auto impl = std::make_unique<Impl>();
    impl->folder = folder;
    impl->open_all();
    return std::unique_ptr<Checkpoint>(new Checkpoint(std::move(impl)));
}

const ModelConfig& Checkpoint::config() const {
    return impl_->config;
}
const fs::path& Checkpoint::folder() const {
    return impl_->folder;
}

HostTensor Checkpoint::tensor(std::string_view name) const {
    const auto found = impl_->by_name.find(name);
    if (found == impl_->by_name.end()) {
        fail(Category::kInput,
             "The model in " + impl_->folder.string() + " has no tensor " + quote_name(name) + ".",
             impl_->folder, std::string(name));
    }
    return impl_->host_tensor(impl_->tensors[found->second]);
}

CheckpointSummary Checkpoint::summary() const {
    std::array<CheckpointSummary::Part, kPartCount> parts;
    std::map<DType, CheckpointSummary::Part> dtypes;
    CheckpointSummary out;
    for (const Impl::Located& located : impl_->tensors) {
        const StoredTensor& stored = located.stored;
        const auto bytes = static_cast<std::int64_t>(stored.size_bytes);
        const auto parameters = bytes / static_cast<std::int64_t>(size_of(stored.dtype));
        for (CheckpointSummary::Part* part :
             {&parts[static_cast<std::size_t>(part_of(stored.name))], &dtypes[stored.dtype]}) {
            part->tensors += 1;
            part->parameters += parameters;
            part->bytes += bytes;
        }
        out.tensors += 1;
        out.parameters += parameters;
        out.bytes += bytes;
    }
    for (std::size_t i = 0; i < kPartCount; ++i) {
        parts[i].name = part_name(static_cast<Part>(i));
        if (parts[i].tensors > 0) out.parts.push_back(parts[i]);
    }
    for (auto& [dtype, part] : dtypes) {
        part.name = dtype_name(dtype);
        out.dtypes.push_back(part);
    }
    const auto parameters_of = [&](Part part) {
        return parts[static_cast<std::size_t>(part)].parameters;
    };
    const TextConfig& text = impl_->config.text;
    out.active_parameters =
        parameters_of(Part::kExperts) / text.num_local_experts * text.num_experts_per_tok +
        parameters_of(Part::kLightningAttention) + parameters_of(Part::kSoftmaxAttention) +
        parameters_of(Part::kRouterGates) + parameters_of(Part::kNorms);
    out.shards = static_cast<std::int64_t>(impl_->shards.size());
    out.problems = impl_->problems;
    return out;
}

const std::string& Checkpoint::fingerprint() const {
    std::call_once(impl_->fingerprint_made, [this] {
        impl_->set_read_ahead(false);
        Fingerprint digest(impl_->config, impl_->tensors.size());
        for (const Impl::Located& located : impl_->tensors) {
            digest.add(located.stored.name, impl_->host_tensor(located));
        }
        impl_->set_read_ahead(true);
        check_unchanged();
        impl_->fingerprint = digest.hex();
    });
    return impl_->fingerprint;
}

void Checkpoint::check_unchanged() const {
    for (const Impl::Shard& shard : impl_->shards) shard.file.check_unchanged();
}

}  // namespace longview::llm
