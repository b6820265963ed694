// InfiniteBench as Activation Beacon's evaluation scores it ("spec/activation-beacon.md" 7.3).
// Thread-safe; texts are UTF-8, comparisons are case-sensitive.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/scoring/infinitebench_label.h"

namespace mneme::scoring {

// Returns the score of one answer, 0 to 1. An answer that can't be read scores 0. Of a label that
// is a list the first value counts, but: longbook_qa takes the best over all, longbook_choice
// accepts all, code_debug takes [function, letter] and math_calc the numbers in their order.
//
//   passkey, number_string   the first digits are the label
//   kv_retrieval             the label is one of the words; longdialogue_qa_eng: of the words in
//                            upper case
//   code_run                 the last word is the label, an integer
//   code_debug, longbook_choice_eng   see infinitebench_option.h
//   math_find                the first number is the label
//   math_calc                share of the label that is there before the first wrong number
//   longbook_qa_eng, longbook_qa_chn  QA F1; Chinese by characters
//   longbook_sum_eng         ROUGE-L F
//
// `prompt_set`: "gpt4" has the answers to math_calc begin with a number that is none of the
// results, which is skipped; the others' names don't matter. NOT_FOUND: no such task.
// INVALID_ARGUMENT: a label of the wrong kind.
absl::StatusOr<double> InfiniteBenchScore(absl::string_view task, absl::string_view prediction,
                                          const Label& label, absl::string_view prompt_set);

// Returns the mean of the answers' scores, 0 to 1. INVALID_ARGUMENT: there are none.
absl::StatusOr<double> InfiniteBenchTaskScore(absl::Span<const double> scores);

}  // namespace mneme::scoring
