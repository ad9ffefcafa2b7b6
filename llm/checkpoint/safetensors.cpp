#include "llm/checkpoint/safetensors.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>

#include "kernels/runtime/error.h"
#include "llm/checkpoint/strict_sax.h"
#include "llm/checkpoint/wrong_content.h"

namespace longview::llm {
namespace {

using nlohmann::json;

constexpr std::uint64_t kPrefixBytes = 8;
constexpr std::size_t kMaxRank = 8;
constexpr std::string_view kMetadataKey = "__metadata__";
// A tensor is at most 4 + 8 + 2 values and 3 keys; metadata strings come on top.
constexpr JsonLimits kHeaderLimits{
    .max_bytes = kMaxHeaderBytes, .max_depth = 3, .max_items = 20 * kMaxTensorsPerFile};

/// A tensor as the header says it, before any check of sizes.
struct Entry {
    std::string name;
    std::string dtype;
    std::vector<std::uint64_t> shape;
    std::vector<std::uint64_t> offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
};

/// Takes the header apart. Only the one shape of document that the format knows passes.
class HeaderReader final : public StrictSax {
  public:
    using StrictSax::StrictSax;

    std::vector<Entry> take() { return std::move(entries_); }

    bool null() override { refuse_value("null"); }
    bool boolean(bool value) override { refuse_value(value ? "true" : "false"); }
    bool number_integer(json::number_integer_t value) override {
        refuse_value(std::to_string(value));
    }
    bool number_float(json::number_float_t, const std::string& text) override {
        refuse_value(quote_for_message(text));
    }
    bool binary(json::binary_t&) override { refuse_value("binary data"); }
    bool number_unsigned(json::number_unsigned_t value) override;
    bool string(std::string& value) override;
    bool start_object(std::size_t) override;
    bool end_object() override;
    bool start_array(std::size_t) override;
    bool end_array() override;
    bool key(std::string& name) override;

  private:
    enum class Field { kNone, kDtype, kShape, kOffsets };

    [[noreturn]] void refuse_value(const std::string& value) const {
        refuse("the header has " + value + " " + where() + ", where " + expected() +
               " is expected");
    }
    std::string where() const;
    std::string expected() const;
    void start_field(const std::string& name);
    void check_name(const std::string& name) const;

    std::vector<Entry> entries_;
    std::vector<std::string> metadata_keys_;
    bool in_metadata_ = false;
    bool saw_metadata_ = false;
    Field field_ = Field::kNone;
};

std::string HeaderReader::where() const {
    if (depth() == 0) return "at the top";
    if (in_metadata_) return "in " + std::string(kMetadataKey);
    if (entries_.empty()) return "before any tensor";
    return "for tensor " + quote_for_message(entries_.back().name);
}

std::string HeaderReader::expected() const {
    if (depth() == 0) return "an object";
    if (in_metadata_ && depth() > 1) return "a string";
    if (depth() == 1) return "an object";
    switch (field_) {
        case Field::kDtype:
            return "a string (dtype)";
        case Field::kShape:
            return "a list of whole numbers (shape)";
        case Field::kOffsets:
            return "a list of two whole numbers (data_offsets)";
        case Field::kNone:
            break;
    }
    return "dtype, shape and data_offsets";
}

bool HeaderReader::number_unsigned(json::number_unsigned_t value) {
    count();
    const bool in_list = depth() == 3;
    if (!in_list) refuse_value(std::to_string(value));
    Entry& entry = entries_.back();
    auto& list = field_ == Field::kShape ? entry.shape : entry.offsets;
    if (list.size() == kMaxRank) {
        refuse("the header has more than " + std::to_string(kMaxRank) + " numbers in a list " +
               where() + (field_ == Field::kShape ? "; so many dimensions are not supported" : ""));
    }
    list.push_back(value);
    return true;
}

bool HeaderReader::string(std::string& value) {
    count();
    if (in_metadata_ && depth() == 2) return true;
    if (depth() != 2 || field_ != Field::kDtype) refuse_value(quote_for_message(value));
    entries_.back().dtype = value;
    return true;
}

bool HeaderReader::start_object(std::size_t) {
    if (depth() >= 2) refuse_value("an object");
    enter();
    count();
    return true;
}

bool HeaderReader::end_object() {
    leave();
    if (depth() == 1 && in_metadata_) {
        std::sort(metadata_keys_.begin(), metadata_keys_.end());
        const auto twice = std::adjacent_find(metadata_keys_.begin(), metadata_keys_.end());
        if (twice != metadata_keys_.end()) {
            refuse("the header has " + quote_for_message(*twice) + " twice " + where());
        }
    }
    if (depth() == 1 && !in_metadata_) {
        const Entry& entry = entries_.back();
        if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets) {
            refuse("the header lacks " +
                   std::string(!entry.has_dtype   ? "dtype"
                               : !entry.has_shape ? "shape"
                                                  : "data_offsets") +
                   " " + where());
        }
    }
    return true;
}

bool HeaderReader::start_array(std::size_t) {
    const bool is_list = field_ == Field::kShape || field_ == Field::kOffsets;
    if (depth() != 2 || in_metadata_ || !is_list) refuse_value("a list");
    enter();
    count();
    return true;
}

bool HeaderReader::end_array() {
    leave();
    return true;
}

bool HeaderReader::key(std::string& name) {
    count();
    if (depth() == 2 && in_metadata_) {
        metadata_keys_.push_back(name);
        return true;
    }
    if (depth() == 2) {
        start_field(name);
        return true;
    }
    field_ = Field::kNone;
    in_metadata_ = name == kMetadataKey;
    if (in_metadata_) {
        if (saw_metadata_) refuse("the header has " + std::string(kMetadataKey) + " twice");
        saw_metadata_ = true;
        return true;
    }
    check_name(name);
    if (entries_.size() == kMaxTensorsPerFile) {
        refuse("the header names more than " + std::to_string(kMaxTensorsPerFile) + " tensors");
    }
    entries_.emplace_back().name = name;
    return true;
}

void HeaderReader::start_field(const std::string& name) {
    Entry& entry = entries_.back();
    bool* seen = nullptr;
    if (name == "dtype") {
        field_ = Field::kDtype;
        seen = &entry.has_dtype;
    } else if (name == "shape") {
        field_ = Field::kShape;
        seen = &entry.has_shape;
    } else if (name == "data_offsets") {
        field_ = Field::kOffsets;
        seen = &entry.has_offsets;
    } else {
        refuse("the header has the unknown key " + quote_for_message(name) + " " + where());
    }
    if (*seen) refuse("the header has " + name + " twice " + where());
    *seen = true;
}

void HeaderReader::check_name(const std::string& name) const {
    if (name.empty()) refuse("the header has a tensor without a name");
    if (name.size() > kMaxTensorNameBytes) {
        refuse("the header has a tensor name of " + std::to_string(name.size()) +
               " bytes; the limit is " + std::to_string(kMaxTensorNameBytes));
    }
    const bool has_control = std::any_of(name.begin(), name.end(), [](char c) {
        return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    });
    if (has_control) {
        refuse("the header has a tensor name with control characters: " + quote_for_message(name));
    }
}

[[noreturn]] void fail(Category category, std::string_view file, const std::string& cause,
                       const std::string& tensor = {}) {
    Error::Context context{{"file", std::string(file)}};
    if (!tensor.empty()) context.emplace_back("tensor", tensor);
    throw Error(category, std::string(file) + cause, std::move(context));
}

std::string tensor_label(const std::string& name) {
    return ": tensor " + quote_for_message(name, 120);
}

/// "4.07 GB" and "4.97 GB", or exact bytes where the short forms would not tell them apart.
std::string bytes_text(std::uint64_t bytes, std::uint64_t other) {
    const auto in_gigabytes = [](std::uint64_t value) {
        char text[32];
        std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(value) / 1e9);
        return std::string(text);
    };
    const bool is_small = bytes < 100'000'000 && other < 100'000'000;
    if (is_small || in_gigabytes(bytes) == in_gigabytes(other)) {
        return std::to_string(bytes) + " bytes";
    }
    return in_gigabytes(bytes);
}

[[noreturn]] void fail_incomplete(std::string_view file, std::uint64_t size, std::uint64_t needed) {
    fail(Category::kInput, file,
         " is " + bytes_text(size, needed) + " but its header needs " + bytes_text(needed, size) +
             ": the download is incomplete. Nothing was loaded.");
}

std::optional<DType> dtype_from(std::string_view text) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
        if (text == dtype_name(dtype)) return dtype;
    }
    return std::nullopt;
}

/// Types the format knows and this program has no use for.
bool is_other_dtype(std::string_view text) {
    constexpr std::string_view kKnown[] = {
        "BOOL", "U8",      "I8",      "U16",     "I16", "U32",     "I32",     "U64", "I64",
        "F64",  "F8_E5M2", "F8_E4M3", "F8_E8M0", "F4",  "F6_E2M3", "F6_E3M2", "C64"};
    return std::find(std::begin(kKnown), std::end(kKnown), text) != std::end(kKnown);
}

StoredTensor check_entry(Entry& entry, std::string_view file) {
    const auto refuse = [&](Category category, const std::string& cause) {
        fail(category, file, tensor_label(entry.name) + " " + cause, entry.name);
    };
    StoredTensor out;
    const auto dtype = dtype_from(entry.dtype);
    if (!dtype) {
        const bool is_known = is_other_dtype(entry.dtype);
        refuse(is_known ? Category::kUnsupported : Category::kInput,
               "has the " + std::string(is_known ? "" : "unknown ") + "data type " +
                   quote_for_message(entry.dtype) + "; BF16, F16 and F32 are supported");
    }
    out.dtype = *dtype;
    if (entry.shape.size() > static_cast<std::size_t>(kMaxUsableRank)) {
        refuse(Category::kUnsupported, "has " + std::to_string(entry.shape.size()) +
                                           " dimensions; at most 4 are supported");
    }
    std::uint64_t bytes = size_of(out.dtype);
    for (const std::uint64_t extent : entry.shape) {
        if (__builtin_mul_overflow(bytes, extent, &bytes) || extent > INT64_MAX) {
            refuse(Category::kInput, "has a shape whose size overflows 64 bits");
        }
        out.shape[static_cast<std::size_t>(out.rank++)] = static_cast<std::int64_t>(extent);
    }
    if (entry.offsets.size() != 2) {
        refuse(Category::kInput, "has " + std::to_string(entry.offsets.size()) +
                                     " data_offsets; begin and end are expected");
    }
    const std::uint64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (end < begin) {
        refuse(Category::kInput, "ends at byte " + std::to_string(end) + " before it begins at " +
                                     std::to_string(begin));
    }
    if (end - begin != bytes) {
        refuse(Category::kInput, "has " + std::to_string(end - begin) +
                                     " bytes, but its shape and data type need " +
                                     std::to_string(bytes));
    }
    out.name = std::move(entry.name);
    out.offset = begin;  // from the start of the data, for now
    out.size_bytes = bytes;
    return out;
}

void check_names_differ(std::vector<StoredTensor>& tensors, std::string_view file) {
    std::sort(tensors.begin(), tensors.end(),
              [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
    const auto twice = std::adjacent_find(
        tensors.begin(), tensors.end(),
        [](const StoredTensor& a, const StoredTensor& b) { return a.name == b.name; });
    if (twice != tensors.end()) {
        fail(Category::kInput, file, tensor_label(twice->name) + " appears twice in the header",
             twice->name);
    }
}

/// Sorts by offset, checks that the tensors tile the data, and makes offsets count from the start
/// of the file.
void place(std::vector<StoredTensor>& tensors, std::uint64_t data_begin, std::uint64_t file_size,
           std::string_view file) {
    // Empty tensors first, so that they do not look like overlaps.
    std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
        return a.offset != b.offset ? a.offset < b.offset : a.size_bytes < b.size_bytes;
    });
    std::uint64_t previous_end = 0;
    for (const StoredTensor& tensor : tensors) {
        if (tensor.offset != previous_end) {
            const char* what =
                tensor.offset > previous_end ? " leaves a hole: it" : " overlaps: it";
            fail(Category::kInput, file,
                 tensor_label(tensor.name) + what + " begins at byte " +
                     std::to_string(tensor.offset) + " of the data, the one before ends at " +
                     std::to_string(previous_end),
                 tensor.name);
        }
        previous_end += tensor.size_bytes;  // == data_offsets[1], no overflow
    }
    std::uint64_t needed = 0;
    if (__builtin_add_overflow(data_begin, previous_end, &needed)) needed = UINT64_MAX;
    if (needed > file_size) fail_incomplete(file, file_size, needed);
    if (needed < file_size) {
        fail(Category::kInput, file,
             " has " + std::to_string(file_size - needed) +
                 " bytes after its last tensor: it is damaged, or its header belongs to another "
                 "file");
    }
    for (StoredTensor& tensor : tensors) {
        tensor.offset += data_begin;
        if (tensor.offset % size_of(tensor.dtype) != 0) {
            fail(Category::kUnsupported, file,
                 tensor_label(tensor.name) + " begins at byte " + std::to_string(tensor.offset) +
                     ", which is no multiple of its element size; write the file again with the "
                     "safetensors library",
                 tensor.name);
        }
    }
}

/// Length of the JSON, from the first eight bytes.
std::uint64_t header_length(std::span<const std::byte> file, std::string_view name) {
    // Only consulted for files that cannot be right: a length may begin with any two bytes.
    const auto fail_not_ours = [&](const std::string& cause) {
        const std::string_view start(reinterpret_cast<const char*>(file.data()),
                                     std::min(file.size(), kContentSniffBytes));
        const std::string wrong = name_wrong_content(start);
        fail(Category::kInput, name, wrong.empty() ? cause : " " + wrong);
    };
    if (file.size() < kPrefixBytes) {
        fail_not_ours(" has only " + std::to_string(file.size()) +
                      " bytes: the download is incomplete. Nothing was loaded.");
    }
    std::uint64_t length = 0;
    for (std::size_t i = kPrefixBytes; i-- > 0;) {
        length = length << 8 | std::to_integer<std::uint64_t>(file[i]);
    }
    if (length > kMaxHeaderBytes) {
        fail_not_ours(" is not a safetensors file: its first 8 bytes give a header of " +
                      std::to_string(length) + " bytes; the limit is " +
                      std::to_string(kMaxHeaderBytes));
    }
    if (length < 2) {
        fail(Category::kInput, name,
             " has no header: its first 8 bytes say that it is " + std::to_string(length) +
                 " bytes long. The file is damaged or its download incomplete");
    }
    if (length > file.size() - kPrefixBytes) {
        fail_incomplete(name, file.size(), kPrefixBytes + length);
    }
    return length;
}

}  // namespace

std::vector<StoredTensor> read_safetensors_header(std::span<const std::byte> file,
                                                  std::string_view name) {
    const std::uint64_t length = header_length(file, name);
    // A private copy: the file may be changed by others while it is parsed.
    const std::string text(reinterpret_cast<const char*>(file.data()) + kPrefixBytes, length);
    if (text.front() != '{') {
        fail(Category::kInput, name,
             " is not a safetensors file: its header begins with " +
                 quote_for_message(text.substr(0, 1)) + " and not with {");
    }
    HeaderReader reader(text, kHeaderLimits, name);
    run_strict_sax(text, kHeaderLimits, name, reader);
    std::vector<Entry> entries = reader.take();
    std::vector<StoredTensor> tensors;
    tensors.reserve(entries.size());
    for (Entry& entry : entries) tensors.push_back(check_entry(entry, name));
    check_names_differ(tensors, name);
    place(tensors, kPrefixBytes + length, file.size(), name);
    return tensors;
}

}  // namespace longview::llm
