#include "common/scoring/infinitebench_option.h"

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "common/scoring/words.h"
#include "common/text/utf8.h"

namespace mneme::scoring {
namespace {

constexpr absl::string_view kLetters = "ABCD";
constexpr absl::string_view kBugPhrases[] = {"answer is:", "is:", "answer:"};
constexpr absl::string_view kChoicePhrases[] = {"answer is:", "answer:", "answer is", "option is"};

bool Contains(absl::Span<const std::string> texts, absl::string_view text) {
  return std::find(texts.begin(), texts.end(), text) != texts.end();
}

// Makes one blank of several.
std::string WithoutRunsOfBlanks(std::string text) {
  const auto are_blanks = [](char a, char b) { return a == ' ' && b == ' '; };
  text.erase(std::unique(text.begin(), text.end(), are_blanks), text.end());
  return text;
}

// Says whether one of `accepted` begins one character after the first of `phrases` that occurs;
// nothing: none does.
std::optional<bool> NamesBehindPhrase(absl::string_view text,
                                      absl::Span<const absl::string_view> phrases,
                                      absl::Span<const std::string> accepted) {
  for (const absl::string_view phrase : phrases) {
    const size_t at = text.find(phrase);
    if (at == absl::string_view::npos) continue;
    absl::string_view behind = text.substr(at + phrase.size());
    if (behind.empty()) return false;
    behind.remove_prefix(text::ReadUtf8(behind).size);
    return std::any_of(accepted.begin(), accepted.end(), [behind](const std::string& name) {
      return absl::StartsWith(behind, name);
    });
  }
  return std::nullopt;
}

}  // namespace

bool NamesBug(absl::string_view prediction, absl::string_view function, absl::string_view letter) {
  if (absl::StartsWith(prediction, letter)) {
    const absl::string_view behind = prediction.substr(letter.size());
    if (absl::StartsWith(behind, ".") || absl::StartsWith(behind, ":")) return true;
  }
  const std::string text =
      WithoutRunsOfBlanks(absl::StrReplaceAll(Strip(prediction), {{"\n", " "},
                                                                  {"`", " "},
                                                                  {"'", " "},
                                                                  {"\"", " "},
                                                                  {"-", " "},
                                                                  {"*", " "},
                                                                  {"Option", " "},
                                                                  {"option", " "}}));
  return NamesBehindPhrase(text, kBugPhrases, {std::string(letter), std::string(function)})
      .value_or(false);
}

bool IsAcceptedChoice(absl::string_view prediction, absl::Span<const std::string> accepted) {
  const std::string stripped = Strip(prediction);
  if (stripped.empty()) return false;
  if (absl::StrContains(kLetters, stripped[0])) return Contains(accepted, stripped.substr(0, 1));
  if (Contains(accepted, stripped)) return true;
  const std::string text = WithoutRunsOfBlanks(BlankOut(stripped, "\n\"'.,?!{}"));
  const std::optional<bool> is_named = NamesBehindPhrase(text, kChoicePhrases, accepted);
  if (is_named.has_value()) return *is_named;
  for (const std::string& word : SplitWords(text)) {
    if (absl::StrContains(kLetters, word)) return Contains(accepted, word);
  }
  return false;
}

}  // namespace mneme::scoring
