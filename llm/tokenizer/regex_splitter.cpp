// Patterns that no hand-written matcher knows, run by PCRE2. They come from a file that a stranger
// wrote: the interpreter is used, not the machine code generator, and every limit is set.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <utility>

#include "kernels/runtime/error.h"
#include "llm/tokenizer/splitter.h"

namespace longview::llm {
namespace {

constexpr std::uint32_t kMatchLimit = 10'000'000;  // steps for one match, about a second
constexpr std::uint32_t kDepthLimit = 200'000;     // nested backtracking points
constexpr std::uint32_t kHeapLimitKib = 64 * 1024;

struct FreePcre2 {
    void operator()(pcre2_code* p) const { pcre2_code_free(p); }
    void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
    void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
    void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
template <typename T>
using Pcre2Ptr = std::unique_ptr<T, FreePcre2>;

template <typename T>
Pcre2Ptr<T> own(T* p) {
    if (p == nullptr) throw Error(Category::kMemory, "no memory for a regular expression");
    return Pcre2Ptr<T>(p);
}

std::string pcre2_message(int code) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    return reinterpret_cast<const char*>(text.data());
}

struct Range {
    std::size_t begin;
    std::size_t end;
    bool is_match;
};

class RegexSplitter final : public Splitter {
  public:
    RegexSplitter(std::string_view pattern, SplitBehavior behavior, bool invert,
                  std::string_view origin)
        : origin_(origin), behavior_(behavior), invert_(invert) {
        compile(translate_oniguruma(pattern, origin));
    }

    std::size_t split(std::string_view text, std::size_t begin, bool final, std::size_t max_pieces,
                      Pieces& pieces) const override {
        const bool pieces_stand_alone =
            behavior_ == SplitBehavior::kIsolated || behavior_ == SplitBehavior::kRemoved;
        // Merging looks at neighbours however far away, so it needs the whole text.
        if (!pieces_stand_alone && !final) return begin;
        if (!pieces_stand_alone) max_pieces = text.size();
        std::vector<Range> ranges;
        const std::size_t stop = find_ranges(text, begin, final, max_pieces, ranges);
        append_pieces(text, ranges, pieces);
        return stop;
    }

  private:
    void compile(const std::string& pattern) {
        const auto context = own(pcre2_compile_context_create(nullptr));
        pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
        pcre2_set_parens_nest_limit(context.get(), 100);
        int error = 0;
        PCRE2_SIZE offset = 0;
        code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                                  &error, &offset, context.get()));
        if (code_ == nullptr) {
            throw Error(Category::kUnsupported,
                        origin_ +
                            ": the regular expression is not understood: " + pcre2_message(error) +
                            " (at byte " + std::to_string(offset) + " of its translation)",
                        {{"translation", pattern.substr(0, 1024)}});
        }
        std::uint32_t matches_empty = 0;
        pcre2_pattern_info(code_.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
        if (matches_empty != 0) {
            throw Error(Category::kUnsupported,
                        origin_ + ": the regular expression can match the empty string");
        }
        limits_ = own(pcre2_match_context_create(nullptr));
        pcre2_set_match_limit(limits_.get(), kMatchLimit);
        pcre2_set_depth_limit(limits_.get(), kDepthLimit);
        pcre2_set_heap_limit(limits_.get(), kHeapLimitKib);
    }

    /// Matches and what lies between them, from begin on; returns where it stopped.
    std::size_t find_ranges(std::string_view text, std::size_t begin, bool final,
                            std::size_t max_ranges, std::vector<Range>& ranges) const {
        const auto data = own(pcre2_match_data_create(1, nullptr));
        const std::uint32_t options = PCRE2_NO_UTF_CHECK | (final ? 0 : PCRE2_PARTIAL_HARD);
        std::size_t at = begin;
        while (at < text.size() && ranges.size() < max_ranges) {
            const int result = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                           text.size(), at, options, data.get(), limits_.get());
            if (result == PCRE2_ERROR_NOMATCH || result == PCRE2_ERROR_PARTIAL) {
                if (!final) break;
                ranges.push_back({at, text.size(), false});
                return text.size();
            }
            if (result < 0) refuse_at(result, at);
            const PCRE2_SIZE* const found = pcre2_get_ovector_pointer(data.get());
            // \K is refused and empty matches are too, but look-behind may do odd things.
            if (found[0] < at || found[1] <= found[0]) refuse_at(PCRE2_ERROR_INTERNAL, at);
            if (found[0] > at) ranges.push_back({at, found[0], false});
            ranges.push_back({found[0], found[1], true});
            at = found[1];
        }
        return at;
    }

    [[noreturn]] void refuse_at(int code, std::size_t at) const {
        throw Error(Category::kUnsupported,
                    origin_ + ": the regular expression gives up on this text (" +
                        pcre2_message(code) + "), so it cannot be used with it",
                    {{"text offset", std::to_string(at)}});
    }

    void append_pieces(std::string_view text, std::vector<Range>& ranges, Pieces& pieces) const {
        if (invert_) {
            for (Range& r : ranges) r.is_match = !r.is_match;
        }
        merge(ranges);
        for (const Range& r : ranges) {
            if (behavior_ == SplitBehavior::kRemoved && r.is_match) continue;
            pieces.push_back(text.substr(r.begin, r.end - r.begin));
        }
    }

    /// Joins neighbours as the behaviour asks; the order of cases follows Hugging Face tokenizers,
    /// where of several matches in a row only the first is merged.
    void merge(std::vector<Range>& ranges) const {
        if (behavior_ == SplitBehavior::kIsolated || behavior_ == SplitBehavior::kRemoved) return;
        std::vector<Range> merged;
        if (behavior_ == SplitBehavior::kMergedWithNext) {
            bool after_is_match = false;
            for (auto r = ranges.rbegin(); r != ranges.rend(); ++r) {
                if (r->is_match && !after_is_match && !merged.empty()) {
                    merged.back().begin = r->begin;
                } else {
                    merged.push_back(*r);
                }
                after_is_match = r->is_match;
            }
            ranges.assign(merged.rbegin(), merged.rend());
            return;
        }
        bool before_is_match = false;
        for (const Range& r : ranges) {
            const bool joins = behavior_ == SplitBehavior::kContiguous
                                   ? r.is_match == before_is_match
                                   : r.is_match && !before_is_match;
            if (joins && !merged.empty()) {
                merged.back().end = r.end;
            } else {
                merged.push_back(r);
            }
            before_is_match = r.is_match;
        }
        ranges = std::move(merged);
    }

    std::string origin_;
    SplitBehavior behavior_;
    bool invert_;
    Pcre2Ptr<pcre2_code> code_;
    Pcre2Ptr<pcre2_match_context> limits_;
};

}  // namespace

std::unique_ptr<Splitter> make_regex_splitter(std::string_view pattern, SplitBehavior behavior,
                                              bool invert, std::string_view origin) {
    return std::make_unique<RegexSplitter>(pattern, behavior, invert, origin);
}

}  // namespace longview::llm
