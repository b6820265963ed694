// A text with named places, such as "Story: {context}". "{{" and "}}" stand for braces.
#pragma once

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace mneme::benchmarks {

// A value, immutable once parsed.
class PromptTemplate {
 public:
  PromptTemplate() = default;

  // `names` are the places that there may be. INVALID_ARGUMENT: another one, or a brace alone.
  static absl::StatusOr<PromptTemplate> Parse(absl::string_view text,
                                              absl::Span<const absl::string_view> names);

  bool Uses(absl::string_view name) const;

  // Returns the text with each place filled; braces in the values stay as they are.
  // INVALID_ARGUMENT: a place without a value.
  absl::StatusOr<std::string> Fill(
      const absl::flat_hash_map<absl::string_view, absl::string_view>& values) const;

 private:
  struct Part {
    std::string text;
    std::string place;  // after `text`; "" after the last
  };
  std::vector<Part> parts_;
};

}  // namespace mneme::benchmarks
