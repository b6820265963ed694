#include "common/auth/api_keys.h"

#include <unistd.h>

#include "common/clock/fake_clock.h"
#include "common/config/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::auth {
namespace {

using ::testing::HasSubstr;

class ApiKeysTest : public ::testing::Test {
 protected:
  ~ApiKeysTest() override { unlink(path_.c_str()); }

  NewKey Make(const std::string& id, const std::string& tenant) {
    return GenerateKey(id, tenant).value();
  }

  const std::string path_ =
      ::testing::TempDir() + "api_keys_test." + std::to_string(getpid()) + ".json";
  clock::FakeClock clock_;
};

TEST_F(ApiKeysTest, FileKeepsEverythingButTheKey) {
  NewKey made = Make("ci", "acme");
  made.entry.admin = true;
  made.entry.limits.max_concurrent = 3;
  made.entry.limits.tokens_per_minute = 5'000'000'000;
  const std::string text = FormatKeys({made.entry});
  EXPECT_EQ(text.find(made.key), std::string::npos);
  const auto entries = ParseKeys(text);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 1);
  EXPECT_EQ(entries->front().tenant, "acme");
  EXPECT_TRUE(entries->front().admin);
  EXPECT_EQ(entries->front().limits.max_concurrent, 3);
  EXPECT_EQ(entries->front().limits.tokens_per_minute, 5'000'000'000);
  EXPECT_TRUE(Verify(made.key, entries->front()));
  EXPECT_FALSE(Verify(made.key + "0", entries->front()));
}

TEST_F(ApiKeysTest, RightKeyIsItsTenantAndOthersAreRefused) {
  const NewKey one = Make("one", "acme");
  NewKey two = Make("", "other");
  two.entry.admin = true;
  ASSERT_TRUE(SaveKeys(path_, {one.entry, two.entry}).ok());
  const auto store = KeyStore::Open(path_, clock_);
  ASSERT_TRUE(store.ok()) << store.status();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ((*store)->Authenticate(one.key)->tenant, "acme");
    EXPECT_EQ((*store)->Authenticate(two.key)->tenant, "other");
    EXPECT_FALSE((*store)->Authenticate(one.key)->admin);
    EXPECT_TRUE((*store)->Authenticate(two.key)->admin);
  }
  std::string wrong = one.key;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  for (const std::string& key : {wrong, std::string(), std::string("mk-"), std::string("mk-one-"),
                                 std::string(1 << 20, 'k'), "mk-none-" + std::string(48, 'a')}) {
    EXPECT_EQ((*store)->Authenticate(key).status().code(), absl::StatusCode::kUnauthenticated);
  }
}

TEST_F(ApiKeysTest, KeyTakenOutOfTheFileIsRefusedWithinASecond) {
  const NewKey one = Make("one", "acme");
  NewKey two = Make("two", "acme");
  ASSERT_TRUE(SaveKeys(path_, {one.entry}).ok());
  const auto store = KeyStore::Open(path_, clock_);
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE((*store)->Authenticate(one.key).ok());
  ASSERT_FALSE((*store)->Authenticate(two.key).ok());
  ASSERT_TRUE(SaveKeys(path_, {two.entry}).ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_FALSE((*store)->Authenticate(one.key).ok());
  EXPECT_TRUE((*store)->Authenticate(two.key).ok());
  // A file broken in the middle of an edit takes nobody's access away.
  ASSERT_TRUE(config::WriteFileAtomically(path_, "{\"keys\": [").ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE((*store)->Authenticate(two.key).ok());
  two.entry.disabled = true;
  ASSERT_TRUE(SaveKeys(path_, {two.entry}).ok());
  clock_.Advance(absl::Seconds(2));
  EXPECT_FALSE((*store)->Authenticate(two.key).ok());
}

TEST_F(ApiKeysTest, WrongFileIsRefusedByName) {
  EXPECT_THAT(std::string(ParseKeys("[]").status().message()), HasSubstr("keys"));
  EXPECT_THAT(std::string(ParseKeys(R"({"keys":[{"id":"a"}]})").status().message()),
              HasSubstr("keys[0]: tenant must be a string"));
  const NewKey made = Make("one", "acme");
  EXPECT_THAT(std::string(ParseKeys(FormatKeys({made.entry, made.entry})).status().message()),
              HasSubstr("twice: one"));
  EXPECT_EQ(KeyStore::Open(path_, clock_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(GenerateKey("a-b", "acme").ok());
  EXPECT_FALSE(GenerateKey("a", "ac me").ok());
}

}  // namespace
}  // namespace mneme::auth
