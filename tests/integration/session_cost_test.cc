// What sessions cost the store: a turn its own tokens' bytes, a fork next to nothing. Figures for a
// long session are in tests/load/session_bench.cc.
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/integration/own_redis_fixture.h"

namespace mneme::testing {
namespace {

namespace gv1 = gateway::v1;

const std::vector<std::string> kQuestions = {
    "Describe a clockmaker's shop, shelf by shelf.", "What hangs above the door?",
    "Which of the clocks is wrong?", "And who is to blame for it?"};

class SessionCostTest : public OwnRedisTest {
 protected:
  // Bytes of key/value memory of one token, on the float32 path.
  static int64_t TokenBytes() {
    executor::v1::GetModelResponse model;
    grpc::ClientContext context;
    EXPECT_TRUE(Executor()->GetModel(&context, {}, &model).ok());
    return int64_t{2} * 4 * model.num_layers() * model.num_kv_heads() * model.head_size();
  }
  static int64_t UsedMemory() {
    redis::Client redis = RedisClient();
    const absl::StatusOr<redis::Reply> info = redis.Run({"INFO", "memory"});
    EXPECT_TRUE(info.ok()) << info.status();
    for (const absl::string_view line : absl::StrSplit(info->text(), "\r\n")) {
      int64_t bytes = 0;
      const std::pair<absl::string_view, absl::string_view> field = absl::StrSplit(line, ':');
      if (field.first == "used_memory" && absl::SimpleAtoi(field.second, &bytes)) return bytes;
    }
    ADD_FAILURE() << info->text();
    return 0;
  }
  static void Fork(const std::string& from, const std::string& to) {
    gv1::ForkSessionRequest request;
    request.set_session_id(from);
    request.set_new_session_id(to);
    gv1::ForkSessionResponse response;
    const grpc::Status status =
        client_->sessions().ForkSession(client_->Context().get(), request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
};

TEST_F(SessionCostTest, TurnMovesItsOwnTokensBytesAndNoOther) {
  const int64_t token_bytes = TokenBytes();
  const std::string session = NewSession();
  int64_t covered = 0;
  for (const std::string& question : kQuestions) {
    const ChatReply reply = client_->Chat(Turn(session, question, 24));
    ASSERT_TRUE(reply.is_committed()) << reply.status;
    // The last generated token has no entries yet.
    const int64_t now_covered = reply.usage.prompt_tokens() + reply.usage.completion_tokens() - 1;
    EXPECT_EQ(reply.receipt.bytes_moved(), (now_covered - covered) * token_bytes);
    if (covered > 0) {
      EXPECT_EQ(reply.receipt.tier(), "hot");
    }
    covered = now_covered;
  }
  // From the store: what is there is fetched, and again only what is new is stored; together that
  // is each token once.
  ForgetHotMemory();
  const ChatReply cold = client_->Chat(Turn(session, "Who repairs it?", 24));
  ASSERT_TRUE(cold.is_committed()) << cold.status;
  const int64_t now_covered = cold.usage.prompt_tokens() + cold.usage.completion_tokens() - 1;
  EXPECT_EQ(cold.receipt.restored_tokens(), covered);
  EXPECT_EQ(cold.receipt.bytes_moved(), now_covered * token_bytes);
}

TEST_F(SessionCostTest, ForkTakesNextToNoMemoryAndBranchesLeaveEachOtherAlone) {
  constexpr int kForks = 8;
  const std::vector<std::string> texts = Undisturbed(kQuestions, 24);
  // Two greedy turns, and a third that is drawn.
  const auto drawn = [](const std::string& of_session) {
    gv1::ChatRequest request = Turn(of_session, kQuestions[2], 24);
    request.mutable_sampling()->set_temperature(1.5F);
    request.mutable_sampling()->set_seed(5);
    return request;
  };
  const std::string undisturbed = NewSession();
  for (size_t turn = 0; turn < 2; ++turn) {
    ASSERT_EQ(client_->Chat(Turn(undisturbed, kQuestions[turn], 24)).text, texts[turn]);
  }
  const std::string other_text = client_->Chat(drawn(undisturbed)).text;
  ASSERT_NE(other_text, texts[2]);
  const std::string session = NewSession();
  for (size_t turn = 0; turn < 2; ++turn) {
    ASSERT_EQ(client_->Chat(Turn(session, kQuestions[turn], 24)).text, texts[turn]);
  }
  std::vector<std::string> forks;
  const int64_t before = UsedMemory();
  for (int i = 0; i < kForks; ++i) {
    forks.push_back(NewSession());
    Fork(session, forks.back());
  }
  EXPECT_LT(UsedMemory() - before, kForks * 64 * 1024);

  // One fork goes another way than the original, a second one, from the store, the same way.
  const ChatReply branch = client_->Chat(drawn(forks[0]));
  EXPECT_EQ(branch.text, other_text);
  EXPECT_EQ(branch.version, 3u);
  ExpectStored(session, kQuestions, {texts[0], texts[1]});
  const ChatReply original = client_->Chat(Turn(session, kQuestions[2], 24));
  EXPECT_EQ(original.text, texts[2]);
  ForgetHotMemory();
  const ChatReply same = client_->Chat(Turn(forks[1], kQuestions[2], 24));
  EXPECT_EQ(same.text, texts[2]);
  EXPECT_EQ(same.receipt.tier(), "redis");
  ExpectStored(forks[0], kQuestions, {texts[0], texts[1], other_text});
  ExpectStored(session, kQuestions, {texts[0], texts[1], texts[2]});
  ExpectStored(forks[2], kQuestions, {texts[0], texts[1]});
  EXPECT_EQ(client_->Chat(Turn(forks[1], kQuestions[3], 24)).text, texts[3]);
  EXPECT_EQ(client_->Chat(Turn(session, kQuestions[3], 24)).text, texts[3]);
}

}  // namespace
}  // namespace mneme::testing
