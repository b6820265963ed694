#include "common/scoring/infinitebench.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/scoring/infinitebench_option.h"
#include "common/scoring/numbers.h"
#include "common/scoring/rouge.h"
#include "common/scoring/segmenter.h"
#include "common/scoring/unicode.h"
#include "common/scoring/word_f1.h"
#include "common/scoring/words.h"
#include "common/status/status_macros.h"

namespace mneme::scoring {
namespace {

constexpr absl::string_view kWordBreaks = "\n:\"'.,?!{}";
constexpr absl::string_view kCodeBreaks = "\n.`'\":";
constexpr absl::string_view kNoSummary = "THIS_IS_A_NULL_STRING";
constexpr absl::string_view kSkippingPromptSet = "gpt4";

struct Answer {
  absl::string_view prediction;
  const Label& label;
  absl::string_view prompt_set;
};

absl::StatusOr<std::vector<std::string>> AllTexts(const Label& label) {
  std::vector<std::string> texts;
  for (const LabelValue& value : label) {
    ASSIGN_OR_RETURN(texts.emplace_back(), TextOf(value));
  }
  return texts;
}

absl::StatusOr<double> ScoreFirstDigits(const Answer& answer) {
  ASSIGN_OR_RETURN(const std::string expected, TextOf(answer.label[0]));
  const std::vector<absl::string_view> runs = DigitRuns(answer.prediction);
  return !runs.empty() && runs[0] == expected ? 1 : 0;
}

absl::StatusOr<double> ScoreWordIn(absl::string_view text, const Label& label) {
  ASSIGN_OR_RETURN(const std::string expected, TextOf(label[0]));
  const std::vector<std::string> words = SplitWords(BlankOut(text, kWordBreaks));
  return std::find(words.begin(), words.end(), expected) != words.end() ? 1 : 0;
}

absl::StatusOr<double> ScoreWord(const Answer& answer) {
  return ScoreWordIn(answer.prediction, answer.label);
}

absl::StatusOr<double> ScoreUpperCaseWord(const Answer& answer) {
  return ScoreWordIn(ToUtf8(ToUpper(ToCharacters(answer.prediction))), answer.label);
}

absl::StatusOr<double> ScoreCodeRun(const Answer& answer) {
  const std::vector<std::string> words = SplitWords(BlankOut(answer.prediction, kCodeBreaks));
  if (words.empty()) return 0;
  const std::optional<std::string> integer = ReadInteger(words.back());
  return integer.has_value() && EqualsInteger(answer.label[0], *integer) ? 1 : 0;
}

absl::StatusOr<double> ScoreCodeDebug(const Answer& answer) {
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, AllTexts(answer.label));
  if (texts.size() < 2) {
    return absl::InvalidArgumentError("code_debug needs a function's name and a letter");
  }
  return NamesBug(answer.prediction, /*function=*/texts[0], /*letter=*/texts[1]) ? 1 : 0;
}

absl::StatusOr<double> ScoreChoice(const Answer& answer) {
  ASSIGN_OR_RETURN(const std::vector<std::string> accepted, AllTexts(answer.label));
  return IsAcceptedChoice(answer.prediction, accepted) ? 1 : 0;
}

// The first digits with their decimals; an empty text: none.
absl::string_view FirstNumber(absl::string_view text) {
  const size_t begin = text.find_first_of("0123456789");
  if (begin == absl::string_view::npos) return {};
  text.remove_prefix(begin);
  const size_t num_digits = CountLeadingDigits(text);
  return text.substr(0, num_digits + DecimalsSize(text.substr(num_digits)));
}

absl::StatusOr<double> ScoreMathFind(const Answer& answer) {
  const LabelValue& expected = answer.label[0];
  if (std::holds_alternative<std::string>(expected)) {
    return absl::InvalidArgumentError("math_find needs a number");
  }
  const absl::string_view number = FirstNumber(answer.prediction);
  if (const auto* const value = std::get_if<double>(&expected)) {
    double read = 0;
    return absl::SimpleAtod(number, &read) && read == *value ? 1 : 0;
  }
  const std::optional<std::string> integer = ReadInteger(number);
  return integer.has_value() && EqualsInteger(expected, *integer) ? 1 : 0;
}

absl::StatusOr<double> ScoreMathCalc(const Answer& answer) {
  std::vector<absl::string_view> runs = DigitRuns(answer.prediction);
  if (answer.prompt_set == kSkippingPromptSet && !runs.empty()) runs.erase(runs.begin());
  size_t num_correct = 0;
  while (num_correct < std::min(runs.size(), answer.label.size())) {
    const std::optional<std::string> integer = ReadInteger(runs[num_correct]);
    if (!integer.has_value() || !EqualsInteger(answer.label[num_correct], *integer)) break;
    ++num_correct;
  }
  return static_cast<double>(num_correct) / static_cast<double>(answer.label.size());
}

template <typename Score>
absl::StatusOr<double> BestOf(const Answer& answer, Score score) {
  ASSIGN_OR_RETURN(const std::vector<std::string> references, AllTexts(answer.label));
  double best = 0;
  for (const std::string& reference : references) {
    best = std::max(best, score(answer.prediction, reference));
  }
  return best;
}

absl::StatusOr<double> ScoreBookQuestion(const Answer& answer) { return BestOf(answer, EnglishF1); }

absl::StatusOr<double> ScoreChineseBookQuestion(const Answer& answer) {
  return BestOf(answer, [](absl::string_view prediction, absl::string_view reference) {
    return SegmentedF1(prediction, reference, SegmentCharacters);
  });
}

absl::StatusOr<double> ScoreBookSummary(const Answer& answer) {
  ASSIGN_OR_RETURN(const std::string reference, TextOf(answer.label[0]));
  return RougeL(answer.prediction.empty() ? kNoSummary : answer.prediction, reference).f;
}

struct Task {
  absl::string_view name;
  absl::StatusOr<double> (*score)(const Answer&);
};

constexpr Task kTasks[] = {
    {"passkey", ScoreFirstDigits},
    {"number_string", ScoreFirstDigits},
    {"kv_retrieval", ScoreWord},
    {"longdialogue_qa_eng", ScoreUpperCaseWord},
    {"longbook_sum_eng", ScoreBookSummary},
    {"longbook_choice_eng", ScoreChoice},
    {"longbook_qa_eng", ScoreBookQuestion},
    {"longbook_qa_chn", ScoreChineseBookQuestion},
    {"math_find", ScoreMathFind},
    {"math_calc", ScoreMathCalc},
    {"code_run", ScoreCodeRun},
    {"code_debug", ScoreCodeDebug},
};

}  // namespace

absl::StatusOr<double> InfiniteBenchScore(absl::string_view task, absl::string_view prediction,
                                          const Label& label, absl::string_view prompt_set) {
  if (label.empty()) return absl::InvalidArgumentError("a label has no value");
  for (const Task& known : kTasks) {
    if (known.name == task) return known.score({prediction, label, prompt_set});
  }
  return absl::NotFoundError(absl::StrCat("InfiniteBench has no task of this name: ", task));
}

absl::StatusOr<double> InfiniteBenchTaskScore(absl::Span<const double> scores) {
  if (scores.empty()) return absl::InvalidArgumentError("a task without answers has no score");
  return std::accumulate(scores.begin(), scores.end(), 0.0) / static_cast<double>(scores.size());
}

}  // namespace mneme::scoring
