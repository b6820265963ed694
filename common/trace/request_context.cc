#include "common/trace/request_context.h"

#include <algorithm>
#include <cstdint>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace mneme::trace {
namespace {

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
  });
}

bool IsZero(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '0'; });
}

}  // namespace

std::string RandomHex(int n) {
  // random_device reads the kernel's generator: there is no seed that two processes
  // could share.
  thread_local std::random_device device;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text(n, '0');
  uint32_t bits = 0;
  for (int i = 0; i < n; ++i, bits >>= 4) {
    if (i % 8 == 0) bits = device();
    text[i] = kDigits[bits & 15];
  }
  return text;
}

bool IsTraceparent(absl::string_view text) {
  return text.size() == 55 && text.substr(0, 3) == "00-" && text[35] == '-' && text[52] == '-' &&
         IsHex(text.substr(3, 32)) && !IsZero(text.substr(3, 32)) && IsHex(text.substr(36, 16)) &&
         !IsZero(text.substr(36, 16)) && IsHex(text.substr(53, 2));
}

bool IsIdentifier(absl::string_view text) {
  return !text.empty() && text.size() <= 128 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == ':' || c == '-';
         });
}

RequestContext ContextFrom(absl::string_view request_id, absl::string_view traceparent) {
  RequestContext context;
  context.request_id =
      IsIdentifier(request_id) ? std::string(request_id) : absl::StrCat("req-", RandomHex(24));
  const bool traced = IsTraceparent(traceparent);
  context.traceparent =
      absl::StrCat("00-", traced ? std::string(traceparent.substr(3, 32)) : RandomHex(32), "-",
                   RandomHex(16), "-", traced ? traceparent.substr(53, 2) : "01");
  return context;
}

}  // namespace mneme::trace
