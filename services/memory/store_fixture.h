// The two stores behind one face for tests that run on both.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "common/clock/fake_clock.h"
#include "common/metrics/metrics.h"
#include "common/redis/client.h"
#include "gtest/gtest.h"
#include "services/memory/in_memory_session_store.h"
#include "services/memory/redis_session_store.h"
#include "tests/support/redis_server.h"

namespace mneme::memory {

// A store and a way to let time pass for it.
class StoreUnderTest {
 public:
  virtual ~StoreUnderTest() = default;
  virtual SessionStore& store() = 0;
  virtual void Advance(absl::Duration duration) = 0;
};

class InMemoryUnderTest final : public StoreUnderTest {
 public:
  explicit InMemoryUnderTest(int64_t default_ttl_seconds = 0)
      : store_(clock_, default_ttl_seconds) {}
  SessionStore& store() override { return store_; }
  void Advance(absl::Duration duration) override { clock_.Advance(duration); }

 private:
  clock::FakeClock clock_;
  InMemorySessionStore store_;
};

// A store in an emptied database of a real redis-server, whose clock cannot be set: Advance waits.
class RedisUnderTest final : public StoreUnderTest {
 public:
  explicit RedisUnderTest(const std::string& address, int64_t default_ttl_seconds = 0)
      : client_({.address = address}), store_(client_, default_ttl_seconds, errors_) {
    EXPECT_TRUE(client_.Run({"FLUSHALL"}).ok());
  }
  SessionStore& store() override { return store_; }
  void Advance(absl::Duration duration) override { absl::SleepFor(duration); }
  redis::Client& client() { return client_; }

 private:
  metrics::Counter errors_;
  redis::Client client_;
  RedisSessionStore store_;
};

// Requests as they come after Normalize.
inline v1::CreateSessionRequest CreateOf(const std::string& session_id,
                                         const std::string& tenant = "t") {
  v1::CreateSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_model("m");
  return request;
}

inline v1::GetSessionRequest GetOf(const std::string& session_id, const std::string& tenant = "t") {
  v1::GetSessionRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_with_messages(true);
  request.set_with_tokens(true);
  return request;
}

inline v1::AcquireLeaseRequest AcquireOf(const std::string& session_id,
                                         const std::string& tenant = "t") {
  v1::AcquireLeaseRequest request;
  request.set_tenant(tenant);
  request.set_session_id(session_id);
  request.set_holder("h");
  request.set_ttl_ms(60'000);
  request.set_create(true);
  request.set_model("m");
  return request;
}

// A turn of one question, one answer and two tokens, all of them made of `text`.
inline v1::CommitTurnRequest CommitOf(const std::string& session_id, uint64_t lease_token,
                                      uint64_t parent_version, const std::string& text,
                                      const std::string& request_id = "") {
  v1::CommitTurnRequest request;
  request.set_tenant("t");
  request.set_session_id(session_id);
  request.set_lease_token(lease_token);
  request.set_parent_version(parent_version);
  auto* question = request.mutable_turn()->add_messages();
  question->set_role("user");
  question->set_content(text);
  auto* answer = request.mutable_turn()->add_messages();
  answer->set_role("assistant");
  answer->set_content("answer to " + text);
  request.mutable_turn()->add_token_ids(static_cast<int32_t>(parent_version));
  request.mutable_turn()->add_token_ids(static_cast<int32_t>(text.size()));
  request.mutable_turn()->set_request_id(request_id);
  return request;
}

inline absl::Time Soon() { return absl::Now() + absl::Seconds(10); }

}  // namespace mneme::memory
