#include "common/status/annotate.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace mneme::status {

absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  absl::Status annotated(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload([&annotated](absl::string_view url, const absl::Cord& payload) {
    annotated.SetPayload(url, payload);
  });
  return annotated;
}

absl::Status WithPayload(absl::Status status, absl::string_view kind, absl::string_view value) {
  status.SetPayload(kind, absl::Cord(value));
  return status;
}

absl::Status InvalidField(absl::string_view field, absl::string_view message) {
  return WithPayload(absl::InvalidArgumentError(absl::StrCat(field, ": ", message)), kFieldPayload,
                     field);
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  return WithPayload(std::move(status), kRetryAfterPayload,
                     absl::StrCat(absl::ToInt64Milliseconds(delay)));
}

std::string PayloadOf(const absl::Status& status, absl::string_view kind) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kind);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace mneme::status
