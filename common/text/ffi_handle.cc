#include "common/text/ffi_handle.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "common/text/ffi/text_ffi.h"

namespace mneme::text::ffi {
namespace {

const uint8_t* Data(absl::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

std::string Take(mneme_text_bytes bytes) {
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  mneme_text_bytes_free(bytes);
  return text;
}

absl::Status ToStatus(int32_t code, mneme_text_bytes error) {
  if (code == 0) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(code), Take(error));
}

void Initialize() {
  static const bool is_done = (mneme_text_initialize(), true);
  static_cast<void>(is_done);
}

}  // namespace

void CrateTokenizer::Destroy::operator()(mneme_text_tokenizer* tokenizer) const {
  mneme_text_tokenizer_destroy(tokenizer);
}

absl::StatusOr<CrateTokenizer> CrateTokenizer::Create(absl::string_view tokenizer_json) {
  Initialize();
  mneme_text_tokenizer* tokenizer = nullptr;
  mneme_text_bytes error{};
  const int32_t code =
      mneme_text_tokenizer_create(Data(tokenizer_json), tokenizer_json.size(), &tokenizer, &error);
  if (code != 0) return ToStatus(code, error);
  return CrateTokenizer(tokenizer);
}

absl::StatusOr<std::vector<int32_t>> CrateTokenizer::Encode(absl::string_view text,
                                                            bool add_special_tokens,
                                                            bool plain_text) const {
  mneme_text_ids out{};
  mneme_text_bytes error{};
  const int32_t code = mneme_text_tokenizer_encode(tokenizer_.get(), Data(text), text.size(),
                                                   add_special_tokens, plain_text, &out, &error);
  if (code != 0) return ToStatus(code, error);
  std::vector<int32_t> ids(out.data, out.data + out.size);
  mneme_text_ids_free(out);
  return ids;
}

absl::StatusOr<std::string> CrateTokenizer::Decode(absl::Span<const int32_t> ids,
                                                   bool skip_special_tokens) const {
  const std::vector<uint32_t> unsigned_ids(ids.begin(), ids.end());
  mneme_text_bytes out{};
  mneme_text_bytes error{};
  const int32_t code =
      mneme_text_tokenizer_decode(tokenizer_.get(), unsigned_ids.data(), unsigned_ids.size(),
                                  skip_special_tokens, &out, &error);
  if (code != 0) return ToStatus(code, error);
  return Take(out);
}

absl::StatusOr<CrateTokenizer::Description> CrateTokenizer::Describe() const {
  mneme_text_bytes description{};
  mneme_text_bytes tokens{};
  mneme_text_bytes error{};
  const int32_t code =
      mneme_text_tokenizer_describe(tokenizer_.get(), &description, &tokens, &error);
  if (code != 0) return ToStatus(code, error);
  const nlohmann::json json = nlohmann::json::parse(Take(description));
  Description result;
  result.special_ids = json["special_ids"].get<std::vector<int32_t>>();
  result.decoder_json = json["decoder"].dump();
  const std::string bytes = Take(tokens);
  result.tokens.reserve(json["size"].get<size_t>());
  for (size_t offset = 0; offset < bytes.size();) {
    uint32_t size = 0;
    std::memcpy(&size, bytes.data() + offset, sizeof(size));
    offset += sizeof(size);
    if (size == UINT32_MAX) {
      result.tokens.emplace_back();
      continue;
    }
    result.tokens.push_back(bytes.substr(offset, size));
    offset += size;
  }
  return result;
}

void CrateTemplate::Destroy::operator()(mneme_text_template* chat_template) const {
  mneme_text_template_destroy(chat_template);
}

absl::StatusOr<CrateTemplate> CrateTemplate::Create(absl::string_view source) {
  Initialize();
  mneme_text_template* chat_template = nullptr;
  mneme_text_bytes error{};
  const int32_t code =
      mneme_text_template_create(Data(source), source.size(), &chat_template, &error);
  if (code != 0) return ToStatus(code, error);
  return CrateTemplate(chat_template);
}

absl::StatusOr<std::string> CrateTemplate::Render(absl::string_view context_json,
                                                  int64_t now_unix_seconds,
                                                  size_t max_output_bytes) const {
  mneme_text_bytes out{};
  mneme_text_bytes error{};
  const int32_t code =
      mneme_text_template_render(template_.get(), Data(context_json), context_json.size(),
                                 now_unix_seconds, max_output_bytes, &out, &error);
  if (code != 0) return ToStatus(code, error);
  return Take(out);
}

}  // namespace mneme::text::ffi
