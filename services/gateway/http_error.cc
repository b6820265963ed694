#include "services/gateway/http_error.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "services/gateway/json_text.h"

namespace mneme::gateway {
namespace {

struct Kind {
  int status;
  const char* type;
  const char* code;  // where the status has no reason; "" for null
};

Kind KindOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return {400, "invalid_request_error", "invalid_value"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "authentication_error", "invalid_api_key"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "permission_error", "permission_denied"};
    case absl::StatusCode::kNotFound:
      return {404, "invalid_request_error", "not_found"};
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return {409, "conflict_error", "conflict"};
    case absl::StatusCode::kFailedPrecondition:
      if (status::PayloadOf(status, status::kReasonPayload) == "SESSION_BUSY") {
        return {409, "conflict_error", "conflict"};
      }
      return {400, "invalid_request_error", "failed_precondition"};
    case absl::StatusCode::kResourceExhausted:
      if (!status::PayloadOf(status, status::kQuotaPayload).empty()) {
        return {429, "rate_limit_error", "rate_limit_exceeded"};
      }
      return {429, "rate_limit_error", "overloaded"};
    case absl::StatusCode::kUnavailable:
      return {503, "server_error", "unavailable"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "timeout_error", "timeout"};
    case absl::StatusCode::kUnimplemented:
      return {501, "invalid_request_error", "not_implemented"};
    case absl::StatusCode::kCancelled:
      return {499, "cancelled", "cancelled"};
    default:
      return {500, "server_error", "internal_error"};
  }
}

std::string Body(const std::string& message, const std::string& type, const std::string& param,
                 const std::string& code) {
  const auto append = [](const char* name, const std::string& value, std::string* out) {
    absl::StrAppend(out, "\"", name, "\":");
    if (value.empty()) {
      *out += "null";
    } else {
      AppendJsonString(value, out);
    }
  };
  std::string body = "{\"error\":{";
  append("message", message, &body);
  body += ',';
  append("type", type, &body);
  body += ',';
  append("param", param, &body);
  body += ',';
  append("code", code, &body);
  body += "}}";
  return body;
}

}  // namespace

HttpError ToHttpError(const absl::Status& status) {
  const Kind kind = KindOf(status);
  std::string param = status::PayloadOf(status, status::kFieldPayload);
  std::string message(status.message());
  // "sampling.temperature: must be …" -> "temperature must be …": the body has no nesting there.
  const size_t prefix_size = param.size() + 2;
  const bool has_prefix = !param.empty() && absl::StartsWith(message, param + ": ");
  constexpr absl::string_view kNesting = "sampling.";
  if (absl::StartsWith(param, kNesting)) param = param.substr(kNesting.size());
  if (has_prefix) {
    const absl::string_view rest = absl::string_view(message).substr(prefix_size);
    message = absl::StrCat(param, absl::StartsWith(rest, "must") ? " " : ": ", rest);
  }
  const std::string reason = status::PayloadOf(status, status::kReasonPayload);
  const std::string code = reason.empty() ? std::string(kind.code) : absl::AsciiStrToLower(reason);
  HttpError error{kind.status, Body(message, kind.type, param, code), ""};
  int64_t retry_ms = 0;
  const bool has_delay =
      absl::SimpleAtoi(status::PayloadOf(status, status::kRetryAfterPayload), &retry_ms);
  if (has_delay || kind.status == 503 || kind.status == 429) {
    error.retry_after = absl::StrCat(std::max<int64_t>(1, (retry_ms + 999) / 1000));
  }
  return error;
}

HttpError MakeHttpError(int status, const std::string& message, const std::string& type,
                        const std::string& code) {
  return {status, Body(message, type, "", code), ""};
}

}  // namespace mneme::gateway
