#include "llm/tokenizer/bpe_tokenizer.h"

#include <algorithm>

#include "llm/tokenizer/json_access.h"
#include "llm/tokenizer/utf8.h"
#include "llm/tokenizer/word_cache.h"

namespace longview::llm {
namespace {

using nlohmann::json;

// The largest published file has 35 MB and some 1.5 million values.
constexpr JsonLimits kLimits{.max_bytes = std::size_t{128} << 20, .max_items = 8'000'000};
constexpr std::size_t kMaxTextBytes = std::size_t{4} << 30;
constexpr std::size_t kPiecesAtOnce = 256;

/// Refuses what would change the ids and is not applied; accepts what only adds tokens around.
void check_post_processor(const json& config, std::string_view origin) {
    if (config.is_null()) return;
    const std::string& type = string_field(config, "type", origin);
    if (type == "Sequence") {
        const json& list = field(config, "processors");
        if (!list.is_array() || list.size() > 16) bad_input(origin, "'processors' must be a list");
        for (const json& processor : list) {
            if (field(processor, "type") == "Sequence") {
                unsupported(origin, "has a post_processor Sequence inside another");
            }
            check_post_processor(processor, origin);
        }
    } else if (type != "ByteLevel" && type != "TemplateProcessing") {
        unsupported(origin, "the post_processor " + quote_for_message(type) + " is not supported");
    }
}

/// Only decoders that give back the bytes of the tokens.
void check_decoder(const json& config, std::string_view origin) {
    if (config.is_null()) return;
    const std::string& type = string_field(config, "type", origin);
    if (type == "Sequence") {
        const json& list = field(config, "decoders");
        if (!list.is_array() || list.size() > 16) bad_input(origin, "'decoders' must be a list");
        for (const json& decoder : list) {
            if (field(decoder, "type") != "ByteLevel") {
                unsupported(origin, "the decoder is not ByteLevel alone");
            }
        }
    } else if (type != "ByteLevel") {
        unsupported(origin, "the decoder " + quote_for_message(type) + " is not supported");
    }
}

json parse_file(const SideFile& file) {
    json parsed = parse_strict_json(file.text, kLimits, file.origin);
    if (!parsed.is_object()) bad_input(file.origin, "must be one JSON object");
    return parsed;
}

/// The two parts of a merge: ["a", "b"], or "a b" as older files have it.
std::pair<std::string_view, std::string_view> merge_parts(const json& merge, std::size_t index,
                                                          std::string_view origin) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
    }
    if (merge.is_string()) {
        const std::string_view text = merge.get_ref<const std::string&>();
        const std::size_t space = text.find(' ');
        if (space != std::string_view::npos && space == text.rfind(' ')) {
            return {text.substr(0, space), text.substr(space + 1)};
        }
    }
    bad_input(origin, "merge " + std::to_string(index) + " is " + describe_json(merge) +
                          "; expected two tokens");
}

}  // namespace

BpeTokenizer::BpeTokenizer(const Files& files) : BpeTokenizer(files, parse_file(files.tokenizer)) {}

BpeTokenizer::BpeTokenizer(const Files& files, const json& parsed)
    : vocab_(parsed, files.tokenizer.origin),
      merges_(vocab_.byte_ids(), field(field(parsed, "model"), "merges").size()),
      pre_tokenizer_(field(parsed, "pre_tokenizer"), files.tokenizer.origin,
                     files.allow_known_patterns),
      normalizer_(field(parsed, "normalizer"), files.tokenizer.origin),
      added_(vocab_.plain_added()),
      whole_(static_cast<std::size_t>(vocab_.size())) {
    const std::string_view origin = files.tokenizer.origin;
    check_model(field(parsed, "model"), origin);
    add_merges(field(field(parsed, "model"), "merges"), origin);
    check_post_processor(field(parsed, "post_processor"), origin);
    check_decoder(field(parsed, "decoder"), origin);
    for (const auto& token : vocab_.plain_added()) {
        if (token.normalized && !normalizer_.empty()) {
            unsupported(origin, "the added token " + quote_for_message(token.text) +
                                    " is matched in normalised text, which is not supported");
        }
    }
    end_of_answer_ = read_end_of_answer(files.tokenizer_config, files.generation_config, vocab_);
}

void BpeTokenizer::check_model(const json& model, std::string_view origin) {
    if (field(model, "type") != "BPE") {
        unsupported(origin, "the model type is " + describe_json(field(model, "type")) +
                                "; only BPE is supported");
    }
    if (!field(model, "dropout").is_null()) {
        unsupported(origin, "uses dropout, which makes encoding random");
    }
    if (bool_field(model, "byte_fallback", false, origin)) {
        unsupported(origin, "uses byte_fallback; only byte-level BPE is supported");
    }
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        const json& value = field(model, affix);
        if (!value.is_null() && value != "") {
            unsupported(origin, std::string("uses ") + affix + ", which is not supported");
        }
    }
    ignore_merges_ = bool_field(model, "ignore_merges", false, origin);
}

void BpeTokenizer::add_merges(const json& merges, std::string_view origin) {
    if (!merges.is_array()) bad_input(origin, "model.merges is missing or not a list");
    std::string joined;
    for (std::size_t i = 0; i < merges.size(); ++i) {
        const auto [left, right] = merge_parts(merges[i], i, origin);
        const std::string name = "merge " + std::to_string(i);
        const TokenId left_id = vocab_.find_piece(left);
        const TokenId right_id = vocab_.find_piece(right);
        if (left_id < 0 || right_id < 0) {
            bad_input(origin, name + " refers to a token that does not exist: " +
                                  quote_for_message(left_id < 0 ? left : right));
        }
        joined.assign(left).append(right);
        const TokenId result = vocab_.find_piece(joined);
        if (result < 0) {
            bad_input(origin, name + " makes the token " + quote_for_message(joined) +
                                  ", which does not exist");
        }
        for (const TokenId id : {left_id, right_id, result}) {
            if (vocab_.is_special(id)) {
                bad_input(origin, name + " involves the special token " +
                                      quote_for_message(vocab_.piece(id)) +
                                      "; ordinary text could then become that token");
            }
        }
        if (!merges_.add(left_id, right_id, result)) {
            bad_input(origin, name + " repeats an earlier merge");
        }
    }
    merges_.finish();
}

/// One call of encode: text goes in from left to right, ids come out.
class BpeTokenizer::Run {
  public:
    Run(const BpeTokenizer& tokenizer, std::string_view text, std::span<const std::size_t> ends,
        std::vector<std::size_t>& settled)
        : tokenizer_(tokenizer), text_(text), settled_(settled), cache_(text.size()) {
        settled_.assign(ends.size(), 0);
        if (rewrites_text()) return;
        for (const std::size_t end : ends) limits_.push_back(known_until(end));
    }

    std::vector<TokenId> encode() {
        ids_.reserve(text_.size() / 4 + 16);
        std::size_t at = 0;
        while (at < text_.size()) {
            const AddedTokenMatcher::Match match = next_added(at);
            encode_segment(at, match.begin);
            if (match.length != 0) ids_.push_back(match.id);
            at = match.begin + match.length;
        }
        settle_up_to(text_.size());
        return std::move(ids_);
    }

  private:
    bool rewrites_text() const {
        return !tokenizer_.normalizer_.empty() || tokenizer_.pre_tokenizer_.add_prefix_space();
    }

    AddedTokenMatcher::Match next_added(std::size_t at) const {
        if (tokenizer_.added_.empty()) return {text_.size(), 0, -1};
        return tokenizer_.added_.find(text_, at);
    }

    /// How far text[0, end) is certain to be cut as in the whole text: an added token or a
    /// character may begin in it and end behind it.
    std::size_t known_until(std::size_t end) const {
        end = std::min(end, text_.size());
        const std::size_t reach = tokenizer_.added_.longest();
        if (reach > 1) end -= std::min(end, reach - 1);
        return end - incomplete_utf8_suffix(text_.substr(0, end));
    }

    /// All ids so far are settled for the ends up to `at`.
    void settle_up_to(std::size_t at) {
        while (next_limit_ < limits_.size() && limits_[next_limit_] <= at) {
            settled_[next_limit_++] = ids_.size();
        }
    }

    /// Text between added tokens: valid UTF-8 goes through the pre-tokenizer, other bytes are
    /// encoded one by one.
    void encode_segment(std::size_t begin, std::size_t end) {
        const std::string_view segment = text_.substr(0, end);
        bool first = true;
        while (begin < end) {
            const std::size_t length = valid_utf8_prefix(segment, begin);
            if (length != 0) {
                if (rewrites_text()) {
                    encode_rewritten(segment.substr(begin, length), first);
                } else {
                    encode_stretch(begin, segment.substr(begin, length));
                }
                begin += length;
                first = false;
            }
            while (begin < end && !decode_utf8(text_.data() + begin, text_.data() + end).valid) {
                settle_up_to(begin);
                ids_.push_back(byte_id(text_[begin++]));
            }
        }
    }

    void encode_rewritten(std::string_view stretch, bool first) {
        std::string text = tokenizer_.normalizer_.apply(stretch);
        if (first && tokenizer_.pre_tokenizer_.add_prefix_space() && !text.starts_with(' ')) {
            text.insert(text.begin(), ' ');
        }
        encode_pieces(text, 0, true);
    }

    /// Valid UTF-8 at text_[base...]; stops at each limit inside to see what is settled there.
    void encode_stretch(std::size_t base, std::string_view stretch) {
        settle_up_to(base);
        std::size_t at = 0;
        while (next_limit_ < limits_.size() && limits_[next_limit_] <= base + stretch.size()) {
            at = encode_pieces(stretch.substr(0, limits_[next_limit_] - base), at, false);
            settled_[next_limit_++] = ids_.size();
        }
        encode_pieces(stretch, at, true);
    }

    std::size_t encode_pieces(std::string_view text, std::size_t at, bool final) {
        while (at < text.size()) {
            pieces_.clear();
            const std::size_t next =
                tokenizer_.pre_tokenizer_.split(text, at, final, kPiecesAtOnce, pieces_);
            encode_words();
            if (next == at) break;
            at = next;
        }
        return at;
    }

    TokenId byte_id(char byte) const {
        return tokenizer_.vocab_.byte_ids()[static_cast<unsigned char>(byte)];
    }

    /// The tables of a large vocabulary lie outside of the processor's nearest caches, so all
    /// accesses are begun before the first is waited for.
    void encode_words() {
        hashes_.clear();
        for (const std::string_view piece : pieces_) {
            const std::uint64_t hash = hash_bytes(piece);
            tokenizer_.vocab_.prefetch(hash);
            cache_.prefetch(hash);
            hashes_.push_back(hash);
        }
        for (std::size_t i = 0; i < pieces_.size(); ++i) encode_word(pieces_[i], hashes_[i]);
    }

    void encode_word(std::string_view word, std::uint64_t hash) {
        if (word.size() == 1) return ids_.push_back(byte_id(word[0]));
        const TokenId id = tokenizer_.vocab_.find(word, hash);
        if (id >= 0 && (tokenizer_.ignore_merges_ || tokenizer_.is_whole(id))) {
            return ids_.push_back(id);
        }
        if (cache_.append(word, hash, ids_)) return;
        const std::size_t before = ids_.size();
        tokenizer_.merges_.encode(word, ids_);
        cache_.store(word, hash, std::span(ids_).subspan(before));
    }

    const BpeTokenizer& tokenizer_;
    std::string_view text_;
    std::vector<std::size_t>& settled_;
    std::vector<std::size_t> limits_;  // the ends as far as text before them is certain
    std::size_t next_limit_ = 0;
    std::vector<TokenId> ids_;
    Pieces pieces_;
    std::vector<std::uint64_t> hashes_;  // of pieces_
    WordCache cache_;
};

/// Merging usually arrives at a token that has exactly these bytes, but not by definition.
bool BpeTokenizer::is_whole(TokenId id) const {
    auto& state = whole_[static_cast<std::size_t>(id)];
    Whole whole = state.load(std::memory_order_relaxed);
    if (whole == Whole::kUnknown) {
        std::vector<TokenId> ids;
        merges_.encode(vocab_.bytes(id), ids);
        whole = ids.size() == 1 && ids[0] == id ? Whole::kYes : Whole::kNo;
        state.store(whole, std::memory_order_relaxed);
    }
    return whole == Whole::kYes;
}

std::vector<TokenId> BpeTokenizer::encode(std::string_view text) const {
    std::vector<std::size_t> settled;
    return encode_settled(text, {}, settled);
}

std::vector<TokenId> BpeTokenizer::encode_settled(std::string_view text,
                                                  std::span<const std::size_t> ends,
                                                  std::vector<std::size_t>& settled) const {
    if (text.size() >= kMaxTextBytes) {
        throw Error(Category::kInput, "the text has " + std::to_string(text.size()) +
                                          " bytes; at most 4 GiB can be encoded at once");
    }
    return Run(*this, text, ends, settled).encode();
}

std::unique_ptr<Tokenizer> parse_bpe_tokenizer(std::string_view tokenizer_json,
                                               std::string_view tokenizer_config_json,
                                               std::string_view origin) {
    const std::string config_origin = std::string(origin) + " (tokenizer_config.json)";
    BpeTokenizer::Files files;
    files.tokenizer = {tokenizer_json, origin};
    files.tokenizer_config = {tokenizer_config_json, config_origin};
    return std::make_unique<BpeTokenizer>(files);
}

}  // namespace longview::llm
