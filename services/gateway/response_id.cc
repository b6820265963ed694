#include "services/gateway/response_id.h"

#include <openssl/sha.h>

#include <array>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/trace/request_context.h"

namespace mneme::gateway {
namespace {

constexpr absl::string_view kPrefix = "resp_";
constexpr size_t kCheckBytes = 4;

std::string CheckOf(absl::string_view text) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> hash;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return std::string(hash.begin(), hash.begin() + kCheckBytes);
}

}  // namespace

std::string FormatResponseId(const ResponseId& id) {
  const std::string text = absl::StrCat(id.version, "/", id.session_id);
  return absl::StrCat(kPrefix, absl::WebSafeBase64Escape(absl::StrCat(CheckOf(text), text)));
}

std::optional<ResponseId> ParseResponseId(absl::string_view text) {
  std::string bytes;
  if (!absl::ConsumePrefix(&text, kPrefix) || !absl::WebSafeBase64Unescape(text, &bytes) ||
      bytes.size() < kCheckBytes) {
    return std::nullopt;
  }
  const absl::string_view rest = absl::string_view(bytes).substr(kCheckBytes);
  const size_t slash = rest.find('/');
  ResponseId id;
  if (slash == absl::string_view::npos || CheckOf(rest) != bytes.substr(0, kCheckBytes) ||
      !absl::SimpleAtoi(rest.substr(0, slash), &id.version)) {
    return std::nullopt;
  }
  id.session_id = std::string(rest.substr(slash + 1));
  if (!trace::IsIdentifier(id.session_id)) return std::nullopt;
  // One name for one turn: "01" is none.
  if (FormatResponseId(id) != absl::StrCat(kPrefix, text)) return std::nullopt;
  return id;
}

}  // namespace mneme::gateway
