#include "services/gateway/admission.h"

#include "common/clock/fake_clock.h"
#include "common/status/annotate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::gateway {
namespace {

class AdmissionTest : public ::testing::Test {
 protected:
  static v1::Limits MakeLimits(int concurrent, int64_t tokens) {
    v1::Limits limits;
    limits.set_max_concurrent(concurrent);
    limits.set_tokens_per_minute(tokens);
    return limits;
  }
  clock::FakeClock clock_;
  Admission admission_{3, clock_};
};

TEST_F(AdmissionTest, PlacesAreGivenBack) {
  const v1::Limits one = MakeLimits(1, 0);
  auto first = admission_.Enter("a", one);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(status::PayloadOf(admission_.Enter("a", one).status(), status::kQuotaPayload),
            "max_concurrent");
  auto b = admission_.Enter("b", one);
  auto c = admission_.Enter("c", one);
  const absl::Status full = admission_.Enter("d", one).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status::PayloadOf(full, status::kQuotaPayload), "");
  first->reset();
  EXPECT_TRUE(admission_.Enter("a", one).ok());
}

TEST_F(AdmissionTest, TokensComeBackWithTime) {
  const v1::Limits limits = MakeLimits(0, 60);
  (*admission_.Enter("a", limits))->Spend(90);
  const absl::Status refused = admission_.Enter("a", limits).status();
  EXPECT_EQ(status::PayloadOf(refused, status::kQuotaPayload), "tokens_per_minute");
  EXPECT_EQ(status::PayloadOf(refused, status::kRetryAfterPayload), "31000");
  clock_.Advance(absl::Seconds(31));
  EXPECT_TRUE(admission_.Enter("a", limits).ok());
  EXPECT_TRUE(admission_.Enter("b", limits).ok());
  clock_.Advance(absl::Hours(5));
  // An idle tenant saves up one minute and no more.
  (*admission_.Enter("a", limits))->Spend(61);
  EXPECT_FALSE(admission_.Enter("a", limits).ok());
}

TEST_F(AdmissionTest, DrainRefusesAndWaits) {
  auto inside = admission_.Enter("a", v1::Limits());
  admission_.Drain();
  EXPECT_EQ(admission_.Enter("a", v1::Limits()).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(admission_.WaitUntilEmpty(absl::Milliseconds(1)));
  inside->reset();
  EXPECT_TRUE(admission_.WaitUntilEmpty(absl::Milliseconds(1)));
}

}  // namespace
}  // namespace mneme::gateway
