#include "common/scoring/numbers.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace mneme::scoring {
size_t CountLeadingDigits(absl::string_view text) {
  const auto end = std::find_if_not(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c));
  });
  return static_cast<size_t>(end - text.begin());
}

size_t DecimalsSize(absl::string_view text) {
  if (text.empty() || text[0] != '.') return 0;
  const size_t num_digits = CountLeadingDigits(text.substr(1));
  return num_digits == 0 ? 0 : 1 + num_digits;
}

std::vector<absl::string_view> DigitRuns(absl::string_view text) {
  std::vector<absl::string_view> runs;
  while (!text.empty()) {
    const size_t size = CountLeadingDigits(text);
    if (size > 0) runs.push_back(text.substr(0, size));
    text.remove_prefix(std::max<size_t>(size, 1));
  }
  return runs;
}

std::optional<std::string> ReadInteger(absl::string_view text) {
  bool is_negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    is_negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.empty() || CountLeadingDigits(text) != text.size()) return std::nullopt;
  const size_t first = text.find_first_not_of('0');
  if (first == absl::string_view::npos) return "0";
  return absl::StrCat(is_negative ? "-" : "", text.substr(first));
}

double CountScore(absl::string_view prediction, absl::string_view truth) {
  const std::vector<absl::string_view> numbers = DigitRuns(prediction);
  if (numbers.empty()) return 0;
  const auto num_equal = std::count(numbers.begin(), numbers.end(), truth);
  return static_cast<double>(num_equal) / static_cast<double>(numbers.size());
}

double RetrievalScore(absl::string_view prediction, absl::string_view truth,
                      absl::string_view word) {
  for (size_t at = truth.find(word); at != absl::string_view::npos; at = truth.find(word, at + 1)) {
    const absl::string_view behind = truth.substr(at + word.size());
    const size_t size = CountLeadingDigits(behind);
    if (size > 0) return CountScore(prediction, behind.substr(0, size));
  }
  return 0;
}

}  // namespace mneme::scoring
