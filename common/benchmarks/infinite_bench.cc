#include "common/benchmarks/infinite_bench.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status/status_macros.h"

namespace mneme::benchmarks {
namespace {

using nlohmann::json;

constexpr absl::string_view kOptionPlaces[] = {"option_a", "option_b", "option_c", "option_d"};

std::string Letter(size_t option) { return std::string(1, static_cast<char>('A' + option)); }

// Takes the decimal digits at the beginning of `text`; false where there are none.
bool TakeDigits(absl::string_view* text) {
  const size_t before = text->size();
  while (!text->empty() && absl::ascii_isdigit(static_cast<unsigned char>(text->front()))) {
    text->remove_prefix(1);
  }
  return text->size() < before;
}

// Returns the first "func_<digits>(<whole number>)" of `input`.
absl::StatusOr<absl::string_view> FunctionCall(absl::string_view input) {
  constexpr absl::string_view kPrefix = "func_";
  for (size_t at = input.find(kPrefix); at != absl::string_view::npos;
       at = input.find(kPrefix, at + 1)) {
    absl::string_view rest = input.substr(at + kPrefix.size());
    if (!TakeDigits(&rest) || !absl::ConsumePrefix(&rest, "(")) continue;
    absl::ConsumePrefix(&rest, "-");
    if (!TakeDigits(&rest) || !absl::ConsumePrefix(&rest, ")")) continue;
    return input.substr(at, input.size() - at - rest.size());
  }
  return absl::InvalidArgumentError(
      "the input names no function call: it must hold one such as func_12(-3)");
}

// Returns what stands between the first "The " and the last " of" after it in one line of `input`,
// with "the".
absl::StatusOr<std::string> Wanted(absl::string_view input) {
  constexpr absl::string_view kBegin = "The ";
  constexpr absl::string_view kEnd = " of";
  for (const absl::string_view line : absl::StrSplit(input, '\n')) {
    const size_t begin = line.find(kBegin);
    const size_t end = line.rfind(kEnd);
    if (begin == absl::string_view::npos || end == absl::string_view::npos ||
        end <= begin + kBegin.size()) {
      continue;
    }
    return absl::AsciiStrToLower(line.substr(begin, end - begin));
  }
  return absl::InvalidArgumentError(
      "the input does not say which number is wanted: it must hold a phrase such as \"The smallest "
      "number of\"");
}

// Returns [text, letter] of an answer that is one of the first `num_options` options.
absl::StatusOr<json> ChoiceLabel(const InfiniteBenchExample& example, size_t num_options) {
  const json& answer = example.answer;
  const bool is_list = answer.is_array();
  const json& text = is_list && !answer.empty() ? answer[0] : answer;
  if (!text.is_string() || (is_list && answer.size() > 2)) {
    return absl::InvalidArgumentError(
        "the answer of a choice must be the option's text, or a list of it and its letter");
  }
  if (is_list && answer.size() == 2) {
    for (size_t i = 0; i < num_options; ++i) {
      if (answer[1] == Letter(i)) return answer;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "the answer's letter is none of the options', use A to ", Letter(num_options - 1)));
  }
  const auto& options = example.options;
  const auto last = options.begin() + static_cast<std::ptrdiff_t>(num_options);
  const auto found = std::find(options.begin(), last, *text.get_ptr<const std::string*>());
  if (found == last) {
    return absl::InvalidArgumentError(
        "the answer is none of the options shown: it must be the text of one of them");
  }
  return json{text, Letter(static_cast<size_t>(found - options.begin()))};
}

}  // namespace

absl::StatusOr<InfiniteBenchSample> MakeInfiniteBenchSample(const TaskPrompt& task,
                                                            const InfiniteBenchExample& example) {
  absl::flat_hash_map<absl::string_view, absl::string_view> values = {{"context", example.context},
                                                                      {"input", example.input}};
  size_t num_options = 0;
  for (size_t i = 0; i < std::size(kOptionPlaces); ++i) {
    if (!task.prompt.Uses(kOptionPlaces[i])) continue;
    num_options = i + 1;
    if (i < example.options.size()) values[kOptionPlaces[i]] = example.options[i];
  }
  if (num_options > example.options.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the example has too few options for its task: ",
                                                   example.options.size(), " of ", num_options));
  }
  if (task.prompt.Uses("function") || task.prompt.Uses("function_call")) {
    ASSIGN_OR_RETURN(const absl::string_view call, FunctionCall(example.input));
    values["function_call"] = call;
    values["function"] = call.substr(0, call.find('('));
  }
  std::string wanted;
  if (task.prompt.Uses("wanted")) {
    ASSIGN_OR_RETURN(wanted, Wanted(example.input));
    values["wanted"] = wanted;
  }
  InfiniteBenchSample sample;
  ASSIGN_OR_RETURN(sample.prompt, task.prompt.Fill(values));
  sample.label = example.answer;
  if (num_options > 0) {
    ASSIGN_OR_RETURN(sample.label, ChoiceLabel(example, num_options));
  }
  return sample;
}

}  // namespace mneme::benchmarks
