// Byte strings to numbers by open addressing. Private to llm/tokenizer.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace longview::llm {

/// 64 well mixed bits of a byte string.
inline std::uint64_t hash_bytes(std::string_view text) {
    const auto load = [](const char* p, std::size_t n) {
        std::uint64_t word = 0;
        std::memcpy(&word, p, n);
        return word;
    };
    const auto mix = [](std::uint64_t a, std::uint64_t b) {
        const auto product = static_cast<unsigned __int128>(a) * b;
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
    };
    constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio
    const char* p = text.data();
    std::size_t n = text.size();
    std::uint64_t hash = kOdd ^ n;
    for (; n > 8; p += 8, n -= 8) hash = mix(hash ^ load(p, 8), kOdd);
    // The tail of at most 8 bytes, as two overlapping halves so that no length needs a loop.
    std::uint64_t tail = 0;
    if (n >= 4) {
        tail = load(p, 4) | load(p + n - 4, 4) << 32;
    } else if (n > 0) {
        tail = static_cast<std::uint64_t>(static_cast<unsigned char>(p[0])) |
               static_cast<std::uint64_t>(static_cast<unsigned char>(p[n / 2])) << 8 |
               static_cast<std::uint64_t>(static_cast<unsigned char>(p[n - 1])) << 16;
    }
    return mix(hash ^ tail, kOdd ^ 0xD1B54A32D192ED03ULL);
}

/// Maps strings kept elsewhere to their index there. The owner says how to get string `i`. Short
/// strings are kept in the table too, so that finding one costs a single access to memory, which
/// prefetch() can begin early.
class ByteStringMap {
  public:
    static constexpr std::uint32_t kNone = 0xFFFFFFFF;

    /// Room for `count` strings at less than half load.
    explicit ByteStringMap(std::size_t count = 0)
        : slots_(std::bit_ceil(count * 2 + 2)), mask_(slots_.size() - 1) {}

    void prefetch(std::uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }

    /// Index of `text`, or kNone. `string_at(i)` gives string i.
    template <typename StringAt>
    std::uint32_t find(std::string_view text, std::uint64_t hash, StringAt&& string_at) const {
        for (std::size_t at = hash & mask_;; at = (at + 1) & mask_) {
            const Slot& slot = slots_[at];
            if (slot.index == kNone || holds(slot, text, hash, string_at)) return slot.index;
        }
    }

    /// Adds index for `text`; returns the index already there when it is known, else kNone.
    template <typename StringAt>
    std::uint32_t insert(std::string_view text, std::uint32_t index, StringAt&& string_at) {
        const std::uint64_t hash = hash_bytes(text);
        for (std::size_t at = hash & mask_;; at = (at + 1) & mask_) {
            Slot& slot = slots_[at];
            if (slot.index == kNone) {
                slot.tag = tag_of(hash);
                slot.index = index;
                slot.length = static_cast<std::uint8_t>(std::min(text.size(), kShort + 1));
                std::memcpy(slot.text, text.data(), std::min(text.size(), kShort));
                return kNone;
            }
            if (holds(slot, text, hash, string_at)) return slot.index;
        }
    }

  private:
    static constexpr std::size_t kShort = 23;
    struct alignas(32) Slot {  // two a cache line
        std::uint32_t tag = 0;
        std::uint32_t index = kNone;
        std::uint8_t length = 0;  // kShort + 1: the text is longer, its beginning is here
        char text[kShort] = {};
    };
    static std::uint32_t tag_of(std::uint64_t hash) {
        return static_cast<std::uint32_t>(hash >> 32);
    }
    template <typename StringAt>
    static bool holds(const Slot& slot, std::string_view text, std::uint64_t hash,
                      StringAt&& string_at) {
        if (slot.tag != tag_of(hash)) return false;
        if (slot.length > kShort) return string_at(slot.index) == text;
        return slot.length == text.size() && std::memcmp(slot.text, text.data(), text.size()) == 0;
    }

    std::vector<Slot> slots_;
    std::size_t mask_;
};

}  // namespace longview::llm
