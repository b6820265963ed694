#include "services/gateway/json_text.h"

#include <charconv>
#include <cmath>

#include "common/text/utf8.h"

namespace mneme::gateway {
namespace {

template <typename T>
void AppendNumber(T value, std::string* out) {
  if (!std::isfinite(value)) {
    *out += "-9999.0";
    return;
  }
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value);
  out->append(buffer, end.ptr);
}

void AppendEscaped(unsigned char c, std::string* out) {
  constexpr char kDigits[] = "0123456789abcdef";
  switch (c) {
    case '"':
      *out += "\\\"";
      break;
    case '\\':
      *out += "\\\\";
      break;
    case '\n':
      *out += "\\n";
      break;
    case '\r':
      *out += "\\r";
      break;
    case '\t':
      *out += "\\t";
      break;
    default:
      *out += "\\u00";
      *out += kDigits[c >> 4];
      *out += kDigits[c & 15];
  }
}

}  // namespace

void AppendJsonString(absl::string_view text, std::string* out) {
  *out += '"';
  size_t done = 0;  // what is copied already
  size_t i = 0;
  const auto copy_until = [&](size_t end) {
    out->append(text.data() + done, end - done);
    done = end;
  };
  while (i < text.size()) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c == '"' || c == '\\') {
      copy_until(i);
      AppendEscaped(c, out);
      done = ++i;
    } else if (c < 0x80) {
      ++i;
    } else {
      const text::Utf8Front front = text::ReadUtf8(text.substr(i));
      if (front.kind != text::Utf8Front::kCharacter) {
        copy_until(i);
        out->append(text::kReplacement.data(), text::kReplacement.size());
        done = i + front.size;
      }
      i += front.size;
    }
  }
  copy_until(text.size());
  *out += '"';
}

void AppendJsonNumber(double value, std::string* out) { AppendNumber(value, out); }
void AppendJsonNumber(float value, std::string* out) { AppendNumber(value, out); }

}  // namespace mneme::gateway
