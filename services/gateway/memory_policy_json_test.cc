#include "services/gateway/memory_policy_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/status/annotate.h"

namespace mneme::gateway {
namespace {

inference::v1::MemoryPolicy Read(const std::string& policy, absl::Status* status) {
  const Json body = Json::parse("{\"memory_policy\":" + policy + "}");
  JsonFields fields(body);
  inference::v1::MemoryPolicy read;
  ReadMemoryPolicy(fields, &read);
  *status = fields.status();
  return read;
}

TEST(MemoryPolicyJsonTest, PoliciesAreWrittenAsTheyAreRead) {
  for (const std::string policy :
       {R"({"type":"full"})", R"({"type":"window","sinks":0,"recent":64})",
        R"({"type":"full","elastic":true})",
        R"({"type":"window","sinks":4,"recent":64,"elastic":false})",
        R"({"type":"h2o","budget":{"tokens":512},"recent":100,"interval":64})",
        R"({"type":"h2o","budget":{"bytes":1048576}})",
        R"({"type":"h2o","budget":{"tokens":64},"guard":{"max_kl":0.25,"probe_every":512}})",
        R"({"type":"l2norm","budget":{"tokens":64},"guard":{"max_kl":2}})",
        R"({"type":"snapkv","budget":{"fraction":0.25},"window":16,"kernel_size":7,"interval":64})",
        R"({"type":"l2norm","budget":{"tokens":512},"skip_layers":0,"interval":32})",
        R"({"type":"namm","artifact":"a\"b","cache_size":1024,"delay":256,"threshold":0.5})"}) {
    absl::Status status;
    std::string written;
    AppendMemoryPolicy(Read(policy, &status), &written);
    EXPECT_TRUE(status.ok()) << policy << ": " << status;
    EXPECT_EQ(written, policy);
  }
  std::string none;
  AppendMemoryPolicy({}, &none);
  EXPECT_EQ(none, "null");
}

TEST(MemoryPolicyJsonTest, ErrorsNameTheField) {
  const auto field = [](const std::string& policy) {
    absl::Status status;
    Read(policy, &status);
    return status::PayloadOf(status, status::kFieldPayload);
  };
  EXPECT_EQ(field(R"({"type":"h2o"})"), "memory_policy.budget");
  EXPECT_EQ(field(R"({"type":"h2o","budget":{"tokens":2,"bytes":2}})"), "memory_policy.budget");
  EXPECT_EQ(field(R"({"type":"h2o","budget":{"tokens":0}})"), "memory_policy.budget.tokens");
  EXPECT_EQ(field(R"({"type":"snapkv","budget":{"fraction":"half"}})"),
            "memory_policy.budget.fraction");
  EXPECT_EQ(field(R"({"type":"l2norm","budget":{"tokens":9},"skip_layers":-1})"),
            "memory_policy.skip_layers");
  EXPECT_EQ(field(R"({"type":"namm"})"), "memory_policy.artifact");
  EXPECT_EQ(field(R"({"type":"full","elastic":1})"), "memory_policy.elastic");
  EXPECT_EQ(field(R"({"type":"h2o","budget":{"tokens":9},"elastic":true})"),
            "memory_policy.elastic");
  EXPECT_EQ(field(R"({"type":"full","guard":{"max_kl":1}})"), "memory_policy.guard");
  EXPECT_EQ(field(R"({"type":"h2o","budget":{"tokens":9},"guard":{}})"),
            "memory_policy.guard.max_kl");
  EXPECT_EQ(field(R"({"type":"h2o","budget":{"tokens":9},"guard":{"max_kl":1,"probe_every":-1}})"),
            "memory_policy.guard.probe_every");
  EXPECT_EQ(field(R"({"type":"magic"})"), "memory_policy.type");
}

}  // namespace
}  // namespace mneme::gateway
