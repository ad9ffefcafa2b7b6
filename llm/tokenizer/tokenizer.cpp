#include "llm/tokenizer/tokenizer.h"

#include "kernels/runtime/error.h"
#include "llm/checkpoint/mapped_file.h"
#include "llm/tokenizer/bpe_tokenizer.h"

namespace longview::llm {
namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{128} << 20;

std::string read_if_there(const std::filesystem::path& path) {
    return std::filesystem::exists(path) ? read_whole_file(path, kMaxFileBytes) : std::string();
}

}  // namespace

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
    std::string text;
    for (const TokenId id : ids) text.append(bytes(id));
    return text;
}

std::vector<TokenId> Tokenizer::encode_settled(std::string_view text,
                                               std::span<const std::size_t> ends,
                                               std::vector<std::size_t>& settled) const {
    settled.assign(ends.size(), 0);
    return encode(text);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& folder) {
    const std::filesystem::path json = folder / "tokenizer.json";
    if (std::filesystem::exists(json)) {
        const std::filesystem::path config = folder / "tokenizer_config.json";
        const std::filesystem::path generation = folder / "generation_config.json";
        const std::string json_text = read_whole_file(json, kMaxFileBytes);
        const std::string config_text = read_if_there(config);
        const std::string generation_text = read_if_there(generation);
        BpeTokenizer::Files files;
        files.tokenizer = {json_text, json.native()};
        files.tokenizer_config = {config_text, config.native()};
        files.generation_config = {generation_text, generation.native()};
        return std::make_unique<BpeTokenizer>(files);
    }
    const std::filesystem::path model = folder / "tokenizer.model";
    if (std::filesystem::exists(model)) {
        return parse_sentencepiece_tokenizer(read_whole_file(model, kMaxFileBytes), model.native());
    }
    throw Error(Category::kNotFound,
                folder.native() +
                    " has neither tokenizer.json nor tokenizer.model. Both come with "
                    "the weights: download the whole model folder",
                {{"folder", folder.native()}});
}

}  // namespace longview::llm
