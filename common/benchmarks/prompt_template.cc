#include "common/benchmarks/prompt_template.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mneme::benchmarks {

absl::StatusOr<PromptTemplate> PromptTemplate::Parse(absl::string_view text,
                                                     absl::Span<const absl::string_view> names) {
  PromptTemplate result;
  Part part;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c != '{' && c != '}') {
      part.text += c;
      continue;
    }
    if (i + 1 < text.size() && text[i + 1] == c) {
      part.text += c;
      ++i;
      continue;
    }
    const size_t end = c == '{' ? text.find('}', i) : absl::string_view::npos;
    if (end == absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a brace stands alone, write it twice to mean itself: byte ", i, " of the template"));
    }
    part.place = std::string(text.substr(i + 1, end - i - 1));
    if (std::find(names.begin(), names.end(), part.place) == names.end()) {
      return absl::InvalidArgumentError(absl::StrCat("unknown place in a template, use one of ",
                                                     absl::StrJoin(names, ", "), ": {", part.place,
                                                     "}"));
    }
    result.parts_.push_back(std::move(part));
    part = Part();
    i = end;
  }
  result.parts_.push_back(std::move(part));
  return result;
}

bool PromptTemplate::Uses(absl::string_view name) const {
  return std::any_of(parts_.begin(), parts_.end(),
                     [name](const Part& part) { return part.place == name; });
}

absl::StatusOr<std::string> PromptTemplate::Fill(
    const absl::flat_hash_map<absl::string_view, absl::string_view>& values) const {
  std::string text;
  for (const Part& part : parts_) {
    text += part.text;
    if (part.place.empty()) continue;
    const auto value = values.find(part.place);
    if (value == values.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("a template's place has no value: {", part.place, "}"));
    }
    absl::StrAppend(&text, value->second);
  }
  return text;
}

}  // namespace mneme::benchmarks
