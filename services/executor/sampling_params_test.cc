#include "services/executor/sampling_params.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::executor {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
namespace v1 = inference::v1;

constexpr int64_t kVocabulary = 1000;

TEST(CheckSamplingTest, AbsentFieldsTakeTheDocumentedDefaults) {
  v1::Sampling sampling;
  sampling.set_seed(5);
  const auto params = CheckSampling(sampling, kVocabulary, {2, 1});
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->temperature, 1);
  EXPECT_EQ(params->top_k, 0);
  EXPECT_EQ(params->top_p, 1);
  EXPECT_EQ(params->repetition_penalty, 1);
  EXPECT_EQ(params->n, 1);
  EXPECT_EQ(params->seed, 5U);
  EXPECT_EQ(params->max_tokens, 0);
  EXPECT_FALSE(params->logprobs.has_value());
  EXPECT_FALSE(params->has_penalties());
  EXPECT_THAT(params->end_ids, ElementsAre(1, 2));
}

TEST(CheckSamplingTest, StopIdsStayWhenEosIsIgnored) {
  v1::Sampling sampling;
  sampling.add_stop_token_ids(9);
  sampling.add_stop_token_ids(2);
  EXPECT_THAT(CheckSampling(sampling, kVocabulary, {1, 2})->end_ids, ElementsAre(1, 2, 9));
  sampling.set_ignore_eos(true);
  EXPECT_THAT(CheckSampling(sampling, kVocabulary, {1, 2})->end_ids, ElementsAre(2, 9));
}

TEST(CheckSamplingTest, AbsentSeedsDiffer) {
  EXPECT_NE(CheckSampling({}, kVocabulary, {})->seed, CheckSampling({}, kVocabulary, {})->seed);
}

struct BadValue {
  std::string field;
  std::function<void(v1::Sampling&)> set;
};

class BadSamplingTest : public ::testing::TestWithParam<BadValue> {};

TEST_P(BadSamplingTest, IsRefusedByName) {
  v1::Sampling sampling;
  GetParam().set(sampling);
  const auto params = CheckSampling(sampling, kVocabulary, {});
  EXPECT_EQ(params.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status::PayloadOf(params.status(), status::kFieldPayload),
            "sampling." + GetParam().field);
}

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Fields, BadSamplingTest,
    ::testing::Values(
        BadValue{"temperature", [](v1::Sampling& s) { s.set_temperature(-0.1F); }},
        BadValue{"temperature", [](v1::Sampling& s) { s.set_temperature(kNan); }},
        BadValue{"temperature", [](v1::Sampling& s) { s.set_temperature(kInfinity); }},
        BadValue{"top_k", [](v1::Sampling& s) { s.set_top_k(-1); }},
        BadValue{"top_p", [](v1::Sampling& s) { s.set_top_p(0); }},
        BadValue{"top_p", [](v1::Sampling& s) { s.set_top_p(1.01F); }},
        BadValue{"top_p", [](v1::Sampling& s) { s.set_top_p(kNan); }},
        BadValue{"min_p", [](v1::Sampling& s) { s.set_min_p(-0.1F); }},
        BadValue{"min_p", [](v1::Sampling& s) { s.set_min_p(1.1F); }},
        BadValue{"min_p", [](v1::Sampling& s) { s.set_min_p(kNan); }},
        BadValue{"presence_penalty", [](v1::Sampling& s) { s.set_presence_penalty(2.1F); }},
        BadValue{"presence_penalty", [](v1::Sampling& s) { s.set_presence_penalty(kNan); }},
        BadValue{"frequency_penalty", [](v1::Sampling& s) { s.set_frequency_penalty(-2.1F); }},
        BadValue{"repetition_penalty", [](v1::Sampling& s) { s.set_repetition_penalty(0); }},
        BadValue{"repetition_penalty", [](v1::Sampling& s) { s.set_repetition_penalty(kNan); }},
        BadValue{"repetition_penalty",
                 [](v1::Sampling& s) { s.set_repetition_penalty(kInfinity); }},
        BadValue{"logit_bias", [](v1::Sampling& s) { (*s.mutable_logit_bias())[-1] = 1; }},
        BadValue{"logit_bias", [](v1::Sampling& s) { (*s.mutable_logit_bias())[1000] = 1; }},
        BadValue{"logit_bias", [](v1::Sampling& s) { (*s.mutable_logit_bias())[1] = kNan; }},
        BadValue{"logit_bias",
                 [](v1::Sampling& s) {
                   for (int i = 0; i < 1025; ++i) (*s.mutable_logit_bias())[i] = 0;
                 }},
        BadValue{"stop_token_ids", [](v1::Sampling& s) { s.add_stop_token_ids(1000); }},
        BadValue{"max_tokens", [](v1::Sampling& s) { s.set_max_tokens(0); }},
        BadValue{"max_tokens", [](v1::Sampling& s) { s.set_max_tokens(-5); }},
        BadValue{"min_tokens", [](v1::Sampling& s) { s.set_min_tokens(-1); }},
        BadValue{"min_tokens",
                 [](v1::Sampling& s) {
                   s.set_min_tokens(6);
                   s.set_max_tokens(5);
                 }},
        BadValue{"n", [](v1::Sampling& s) { s.set_n(-1); }},
        BadValue{"n", [](v1::Sampling& s) { s.set_n(17); }},
        BadValue{"logprobs", [](v1::Sampling& s) { s.set_logprobs(21); }},
        BadValue{"logprobs", [](v1::Sampling& s) { s.set_logprobs(-1); }},
        BadValue{"prompt_logprobs", [](v1::Sampling& s) { s.set_prompt_logprobs(21); }}));

}  // namespace
}  // namespace mneme::executor
