// How fast text becomes ids: a byte-level BPE of 200 thousand tokens, trained here on made-up text,
// one thread. Figures are in llm/tokenizer/RESULTS.md.
//
//   longview_tokenizer_bench                  makes tokenizer and text, then measures
//   longview_tokenizer_bench --write FOLDER   leaves tokenizer.json, text.txt and its ids.i32
//   there,
//                                             so that other programs can be measured on the same
//   longview_tokenizer_bench --read FOLDER    measures with tokenizer.json and text.txt from there
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <queue>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "llm/tokenizer/bpe_tokenizer.h"
#include "llm/tokenizer/splitter.h"
#include "llm/tokenizer/utf8.h"

namespace {

using namespace longview::llm;
using nlohmann::json;

constexpr std::size_t kVocabulary = 200'000;
constexpr std::string_view kPattern =  // as MiniMax-M2 and GPT-4o have it
    R"re([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)re"
    R"re(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)re"
    R"re(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

/// Processor time of this thread, so that other work on the machine counts little.
double now() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

/// Text with the statistics of prose: words by Zipf's law, new words all the time, punctuation,
/// numbers, some capitals, accents, ideographs and code.
class TextMaker {
  public:
    explicit TextMaker(unsigned seed) : random_(seed) {
        static const char* const onsets[] = {
            "b", "br", "c",  "ch", "d", "f", "fl", "g",  "gr",  "h", "j",  "k",  "l", "m", "n",
            "p", "pl", "pr", "qu", "r", "s", "sh", "st", "str", "t", "th", "tr", "v", "w", ""};
        static const char* const vowels[] = {"a",  "e",  "i", "o", "u", "ea",
                                             "ou", "io", "y", "é", "ü"};
        static const char* const codas[] = {"",   "",   "",   "n",  "r", "s",    "t",   "l",
                                            "nd", "st", "ng", "ck", "m", "tion", "ing", "ed"};
        for (const char* onset : onsets) {
            for (const char* vowel : vowels) {
                for (const char* coda : codas)
                    syllables_.push_back(std::string(onset) + vowel + coda);
            }
        }
        words_.resize(400'000);
        for (std::string& word : words_) {
            const unsigned n = 1 + random_() % 2 + (random_() % 3 == 0 ? random_() % 3 : 0);
            for (unsigned i = 0; i < n; ++i) word += syllables_[random_() % syllables_.size()];
        }
    }

    std::string make(std::size_t bytes) {
        std::string text;
        while (text.size() < bytes) paragraph(text);
        text.resize(bytes - incomplete_utf8_suffix(std::string_view(text).substr(0, bytes)));
        return text;
    }

  private:
    const std::string& word() {
        // Rank r with a chance of about 1 / r: the exponential of a uniform number.
        const double u = static_cast<double>(random_()) / 4294967296.0;
        const auto rank =
            static_cast<std::size_t>(std::exp(u * std::log(static_cast<double>(words_.size()))));
        return words_[std::min(rank, words_.size()) - 1];
    }

    void paragraph(std::string& text) {
        if (random_() % 12 == 0) return code(text);
        if (random_() % 25 == 0) return ideographs(text);
        for (unsigned s = 2 + random_() % 6; s > 0; --s) {
            const unsigned length = 6 + random_() % 18;
            for (unsigned i = 0; i < length; ++i) {
                std::string w = word();
                if (i == 0 || random_() % 25 == 0)
                    w[0] = w[0] >= 'a' && w[0] <= 'z' ? static_cast<char>(w[0] - 32) : w[0];
                text += i == 0 ? "" : " ";
                if (random_() % 40 == 0) text += std::to_string(random_() % 3000) + " ";
                text += w;
                if (random_() % 60 == 0) text += "'s";
                if (random_() % 12 == 0) text += ",";
            }
            text += random_() % 8 == 0 ? "? " : ". ";
        }
        text += "\n\n";
    }
    void code(std::string& text) {
        for (unsigned i = 3 + random_() % 8; i > 0; --i) {
            text.append(4 * (random_() % 4), ' ');
            text += word() + "_" + word() + " = " + word() + "(" + std::to_string(random_() % 100) +
                    ", \"" + word() + "\");\n";
        }
        text += "\n";
    }
    void ideographs(std::string& text) {
        for (unsigned i = 20 + random_() % 80; i > 0; --i) {
            const double u = static_cast<double>(random_()) / 4294967296.0;
            append_utf8(text, static_cast<char32_t>(0x4E00 + std::exp(u * std::log(6000.0))));
            if (random_() % 14 == 0) text += "，";
        }
        text += "。\n";
    }

    std::mt19937 random_;
    std::vector<std::string> syllables_;
    std::vector<std::string> words_;
};

/// Plain BPE training over word counts: the most frequent pair first, counts kept up to date.
class Trainer {
  public:
    explicit Trainer(std::string_view text) {
        const auto splitter = make_known_splitter(kPattern);
        std::unordered_map<std::string_view, std::int64_t> counts;
        Pieces pieces;
        for (std::size_t at = 0; at < text.size();) {
            pieces.clear();
            at = splitter->split(text, at, true, 65536, pieces);
            for (const std::string_view piece : pieces) ++counts[piece];
        }
        std::map<std::string_view, std::int64_t> sorted(counts.begin(), counts.end());
        for (const auto& [word, count] : sorted) {
            Word w{{}, count};
            for (const char c : word) w.symbols.push_back(static_cast<unsigned char>(c));
            words_.push_back(std::move(w));
        }
        for (int b = 0; b < 256; ++b) tokens_.push_back(std::string(1, static_cast<char>(b)));
        for (std::uint32_t w = 0; w < words_.size(); ++w) count_pairs(w, +1);
        for (const auto& [pair, stats] : pairs_) queue_.push({stats.count, pair});
    }

    /// Tokens in order of their ids, and the merges that make those from 256 on.
    void run(std::size_t vocabulary) {
        while (tokens_.size() < vocabulary && !queue_.empty()) {
            const auto [count, pair] = queue_.top();
            queue_.pop();
            auto& stats = pairs_[pair];
            if (count != stats.count) {
                if (stats.count > 0) queue_.push({stats.count, pair});
                continue;
            }
            if (count <= 0) break;
            merge(pair);
        }
    }

    const std::vector<std::string>& tokens() const { return tokens_; }
    const std::vector<std::uint64_t>& merges() const { return merges_; }

  private:
    struct Word {
        std::vector<std::uint32_t> symbols;
        std::int64_t count;
    };
    struct Stats {
        std::int64_t count = 0;
        std::vector<std::uint32_t> words;
    };
    static std::uint64_t key(std::uint32_t a, std::uint32_t b) {
        return std::uint64_t{a} << 32 | b;
    }

    void count_pairs(std::uint32_t w, int sign) {
        const Word& word = words_[w];
        for (std::size_t i = 0; i + 1 < word.symbols.size(); ++i) {
            Stats& stats = pairs_[key(word.symbols[i], word.symbols[i + 1])];
            stats.count += sign * word.count;
            if (sign > 0) stats.words.push_back(w);
        }
    }
    void merge(std::uint64_t pair) {
        const auto left = static_cast<std::uint32_t>(pair >> 32);
        const auto right = static_cast<std::uint32_t>(pair);
        const auto made = static_cast<std::uint32_t>(tokens_.size());
        tokens_.push_back(tokens_[left] + tokens_[right]);
        merges_.push_back(pair);
        std::vector<std::uint32_t> where = std::move(pairs_[pair].words);
        std::sort(where.begin(), where.end());
        where.erase(std::unique(where.begin(), where.end()), where.end());
        for (const std::uint32_t w : where) {
            count_pairs(w, -1);
            auto& s = words_[w].symbols;
            std::size_t out = 0;
            for (std::size_t i = 0; i < s.size(); ++i) {
                const bool joins = i + 1 < s.size() && s[i] == left && s[i + 1] == right;
                s[out++] = joins ? made : s[i];
                i += joins ? 1 : 0;
            }
            s.resize(out);
            count_pairs(w, +1);
            for (std::size_t i = 0; i + 1 < s.size(); ++i) {
                if (s[i] == made || s[i + 1] == made) {
                    queue_.push({pairs_[key(s[i], s[i + 1])].count, key(s[i], s[i + 1])});
                }
            }
        }
        pairs_.erase(pair);
    }

    std::vector<Word> words_;
    std::vector<std::string> tokens_;
    std::vector<std::uint64_t> merges_;
    std::unordered_map<std::uint64_t, Stats> pairs_;
    std::priority_queue<std::pair<std::int64_t, std::uint64_t>> queue_;
};

std::string byte_level(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
        const auto b = static_cast<unsigned char>(c);
        char32_t code = b;
        if (b <= 0x20) code = 0x100 + b;
        if (b >= 0x7F && b <= 0xA0) code = 0x100 + 0x21 + (b - 0x7F);
        if (b == 0xAD) code = 0x143;
        append_utf8(out, code);
    }
    return out;
}

std::string tokenizer_json(const Trainer& trainer) {
    json vocab = json::object();
    for (std::size_t id = 0; id < trainer.tokens().size(); ++id) {
        vocab.emplace(byte_level(trainer.tokens()[id]),
                      id);  // a text made twice keeps its first id
    }
    json merges = json::array();
    for (const std::uint64_t pair : trainer.merges()) {
        merges.push_back({byte_level(trainer.tokens()[pair >> 32]),
                          byte_level(trainer.tokens()[pair & 0xFFFFFFFF])});
    }
    const std::size_t end = trainer.tokens().size();
    return json{{"version", "1.0"},
                {"added_tokens",
                 {{{"id", end},
                   {"content", "<end_of_sentence>"},
                   {"special", true},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", false},
                   {"normalized", false}}}},
                {"normalizer", nullptr},
                {"pre_tokenizer",
                 {{"type", "Sequence"},
                  {"pretokenizers",
                   {{{"type", "Split"},
                     {"pattern", {{"Regex", kPattern}}},
                     {"behavior", "Isolated"},
                     {"invert", false}},
                    {{"type", "ByteLevel"},
                     {"add_prefix_space", false},
                     {"trim_offsets", true},
                     {"use_regex", false}}}}}},
                {"post_processor", nullptr},
                {"decoder",
                 {{"type", "ByteLevel"},
                  {"add_prefix_space", true},
                  {"trim_offsets", true},
                  {"use_regex", true}}},
                {"model",
                 {{"type", "BPE"},
                  {"dropout", nullptr},
                  {"unk_token", nullptr},
                  {"vocab", vocab},
                  {"merges", merges}}}}
        .dump();
}

/// Median of five timings of one call, in MB/s.
void measure(const char* name, const Tokenizer& tokenizer, std::string_view text, int rounds) {
    std::vector<double> times;
    std::size_t ids = 0;
    for (int i = 0; i < rounds; ++i) {
        const double start = now();
        ids = tokenizer.encode(text).size();
        times.push_back(now() - start);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    std::printf("%-44s %8.1f MB %9.1f MB/s %9.2f bytes a token\n", name,
                static_cast<double>(text.size()) / 1e6,
                static_cast<double>(text.size()) / 1e6 / median,
                static_cast<double>(text.size()) / static_cast<double>(ids));
}

std::unique_ptr<BpeTokenizer> load(const std::string& json_text, bool known) {
    BpeTokenizer::Files files;
    files.tokenizer = {json_text, "tokenizer.json"};
    files.allow_known_patterns = known;
    return std::make_unique<BpeTokenizer>(files);
}

std::string read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::filesystem::path& path, std::string_view bytes) {
    std::ofstream(path, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string repeated(std::string_view unit, std::size_t bytes) {
    std::string text;
    text.reserve(bytes + unit.size());
    while (text.size() < bytes) text += unit;
    return text;
}

struct Sample {
    std::string tokenizer;  // tokenizer.json
    std::string text;
};

Sample make_sample() {
    TextMaker maker(1);
    const double start = now();
    Trainer trainer(maker.make(60'000'000));
    trainer.run(kVocabulary);
    Sample sample{tokenizer_json(trainer), maker.make(10'000'000)};
    std::printf("trained %zu tokens in %.1f s; tokenizer.json has %.1f MB\n",
                trainer.tokens().size(), now() - start,
                static_cast<double>(sample.tokenizer.size()) / 1e6);
    return sample;
}

}  // namespace

int main(int argc, char** argv) {
    const std::string_view option = argc == 3 ? argv[1] : "";
    const std::filesystem::path folder = argc == 3 ? argv[2] : "";
    const Sample sample = option == "--read"
                              ? Sample{read(folder / "tokenizer.json"), read(folder / "text.txt")}
                              : make_sample();
    const double start = now();
    const auto tokenizer = load(sample.tokenizer, true);
    std::printf("load: %.3f s\n", now() - start);
    if (option == "--write") {
        const auto ids = tokenizer->encode(sample.text);
        write(folder / "tokenizer.json", sample.tokenizer);
        write(folder / "text.txt", sample.text);
        write(folder / "ids.i32",
              {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(TokenId)});
    }
    measure("prose, code and ideographs", *tokenizer, sample.text, 7);
    measure("the same through PCRE2", *load(sample.tokenizer, false), sample.text, 3);
    measure("a question of 100 bytes", *tokenizer, std::string_view(sample.text).substr(0, 100),
            1001);
    measure("one letter", *tokenizer, repeated("a", 100'000'000), 1);
    measure("one blank", *tokenizer, repeated(" ", 100'000'000), 1);
    measure("a word without end", *tokenizer, repeated("harbour", 100'000'000), 1);
    measure("bytes that are not UTF-8", *tokenizer, repeated("\xFF\x80", 100'000'000), 1);
    return 0;
}
