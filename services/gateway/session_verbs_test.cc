// Sessions are forked, rewound, described, changed, moved and forgotten, through both fronts.
#include "common/auth/api_keys.h"
#include "mneme/gateway/v1/admin.grpc.pb.h"
#include "services/gateway/gateway_fixture.h"

namespace mneme::gateway {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SessionVerbsTest : public GatewayTest {
 protected:
  // Two turns of session "s".
  void StartWithTurns() {
    Start();
    for (const char* text : {"one", "two"}) {
      EXPECT_EQ(Post("/v1/chat/completions", Chat(text, {{"session_id", "s"}}))->status, 200);
    }
  }
  std::vector<std::string> Contents(const std::string& session) {
    std::vector<std::string> contents;
    const Json messages = Parse(Http().Get("/v1/sessions/" + session + "/messages"));
    for (const Json& message : messages["data"]) contents.push_back(message["content"]);
    return contents;
  }
  std::string AddKey(const std::string& id, const std::string& tenant, bool admin) {
    auth::NewKey made = auth::GenerateKey(id, tenant).value();
    made.entry.admin = admin;
    entries_.push_back(made.entry);
    const std::string path = absl::StrCat(::testing::TempDir(), "verbs_keys.", getpid(), ".json");
    EXPECT_TRUE(auth::SaveKeys(path, entries_).ok());
    config_.set_keys_file(path);
    return made.key;
  }
  static httplib::Headers Bearer(const std::string& key) {
    return {{"Authorization", "Bearer " + key}};
  }
  std::vector<auth::KeyEntry> entries_;
};

TEST_F(SessionVerbsTest, SessionIsMadeAndChangedOverHttp) {
  Start();
  const Json made = Parse(Post("/v1/sessions", R"({"id":"a","title":"First","ttl_seconds":60,
      "memory_policy":{"type":"window","recent":64}})"));
  EXPECT_EQ(made["id"], "a");
  EXPECT_EQ(made["object"], "session");
  EXPECT_EQ(made["title"], "First");
  EXPECT_EQ(made["version"], 0);
  EXPECT_EQ(made["parent"], Json());
  ErrorOf(Post("/v1/sessions", R"({"id":"a"})"), 409, "conflict_error");
  EXPECT_NE(Parse(Post("/v1/sessions", ""))["id"], "");
  const auto patched =
      Http().Patch("/v1/sessions/a", R"({"pinned":true,"ttl_seconds":0})", "text/plain");
  EXPECT_EQ(Parse(patched)["pinned"], true);
  EXPECT_EQ(Parse(patched)["title"], "First");
  const Json posted = Parse(Post("/v1/sessions/a", R"({"title":"Second",
      "memory_policy":{"type":"window","recent":64}})"));
  EXPECT_EQ(posted["title"], "Second");
  EXPECT_EQ(posted["memory_policy"], Json({{"type", "window"}, {"sinks", 4}, {"recent", 64}}));
  EXPECT_EQ(Parse(Http().Get("/v1/sessions/a"))["pinned"], true);
}

TEST_F(SessionVerbsTest, BadVerbsAreRefusedByName) {
  StartWithTurns();
  const auto refused = [&](const std::string& path, const std::string& body,
                           const std::string& param) {
    const auto result = Post(path, body);
    ErrorOf(result, 400, "invalid_request_error");
    EXPECT_EQ(Parse(result)["error"]["param"], param) << path << body;
  };
  refused("/v1/sessions", R"({"id":"a b"})", "session_id");
  refused("/v1/sessions", R"({"ttl_seconds":-1})", "ttl_seconds");
  refused("/v1/sessions", R"({"ttl_seconds":9000000000000})", "ttl_seconds");
  refused("/v1/sessions", R"({"memory_policy":{"type":"magic"}})", "memory_policy.type");
  refused("/v1/sessions", R"({"title":")" + std::string(1025, 'x') + R"("})", "title");
  refused("/v1/sessions/s", R"({"pinned":"yes"})", "pinned");
  refused("/v1/sessions/s/fork", R"({"version":-1})", "version");
  refused("/v1/sessions/s/fork", R"({"new_session_id":"a/b"})", "new_session_id");
  refused("/v1/sessions/s/rewind", "{}", "version");
  refused("/v1/sessions/s/compact", "{}", "memory_policy");
  refused("/v1/sessions/s/compact", R"({"encoding":"bf16"})", "encoding");
  refused("/v1/sessions/s/compact", R"({"encoding":8})", "encoding");
  refused("/v1/sessions/s/compact", R"({"parent_version":-1,"encoding":"int8"})", "parent_version");
  refused("/v1/sessions/s/compact", R"({"drop_older_snapshots":"yes"})", "drop_older_snapshots");
  refused("/v1/sessions/s/compact", R"({"memory_policy":{"type":"window"}})",
          "memory_policy.recent");
  ErrorOf(Post("/v1/sessions/s/rewind", R"({"version":9})"), 400, "invalid_request_error");
  ErrorOf(Post("/v1/sessions/s/fork", R"({"version":9})"), 400, "invalid_request_error");
  ErrorOf(Post("/v1/sessions/none/fork", ""), 404, "invalid_request_error");
  ErrorOf(Http().Get("/v1/sessions/none/export"), 404, "invalid_request_error");
  ErrorOf(Http().Get("/v1/sessions/none/versions"), 404, "invalid_request_error");
  ErrorOf(Post("/v1/sessions/s", "["), 400, "invalid_request_error");
  EXPECT_EQ(Contents("s").size(), 4U);
}

TEST_F(SessionVerbsTest, ForkAndOriginalGoTheirOwnWays) {
  StartWithTurns();
  const Json fork = Parse(Post("/v1/sessions/s/fork", R"({"version":1,"new_session_id":"f"})"));
  EXPECT_EQ(fork["id"], "f");
  EXPECT_EQ(fork["version"], 1);
  EXPECT_EQ(fork["parent"], Json({{"id", "s"}, {"version", 1}}));
  executor_->Say("Elsewhere");
  EXPECT_EQ(Parse(Post("/v1/chat/completions",
                       Chat("other", {{"session_id", "f"}})))["mneme"]["committed_version"],
            2);
  EXPECT_THAT(Contents("f"), ElementsAre("one", "Hello, world", "other", "Elsewhere"));
  EXPECT_THAT(Contents("s"), ElementsAre("one", "Hello, world", "two", "Hello, world"));
  EXPECT_EQ(Parse(Post("/v1/sessions/s/fork", ""))["version"], 2);
}

TEST_F(SessionVerbsTest, RewindDropsLaterTurnsAndStaleClientsAreToldTheHead) {
  StartWithTurns();
  EXPECT_EQ(Parse(Post("/v1/sessions/s/rewind", R"({"version":1})"))["version"], 1);
  EXPECT_THAT(Contents("s"), ElementsAre("one", "Hello, world"));
  const auto stale =
      Post("/v1/chat/completions", Chat("x", {{"session_id", "s"}, {"parent_version", 2}}));
  ErrorOf(stale, 409, "conflict_error");
  EXPECT_EQ(Parse(stale)["error"]["code"], "stale_version");
  EXPECT_EQ(stale->get_header_value("X-Mneme-Version"), "1");
  v1::ChatRequest request = GrpcRequest("x");
  request.set_session_id("s");
  request.set_parent_version(2);
  const absl::Status told = rpc::FromGrpc(GrpcChat(request).status);
  EXPECT_EQ(told.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(status::PayloadOf(told, status::kVersionPayload), "1");
  const auto fresh =
      Post("/v1/chat/completions", Chat("x", {{"session_id", "s"}, {"parent_version", 1}}));
  EXPECT_EQ(Parse(fresh)["mneme"]["committed_version"], 2);
}

TEST_F(SessionVerbsTest, CompactionIsPassedOnAndExecutorsForgetTheSession) {
  StartWithTurns();
  const Json made = Parse(Post("/v1/sessions/s/compact", R"({"parent_version":2,"encoding":"int8",
      "memory_policy":{"type":"window","recent":64},"drop_older_snapshots":true})"));
  EXPECT_EQ(made["object"], "session.compacted");
  EXPECT_EQ(made["session"]["id"], "s");
  EXPECT_EQ(made["session"]["memory_policy"]["recent"], 64);
  EXPECT_EQ(made["kv_bytes_before"], 2000);
  EXPECT_EQ(made["kv_bytes_after"], 1000);
  EXPECT_EQ(made["entries_before"], 10);
  EXPECT_EQ(made["entries_after"], 5);
  EXPECT_EQ(made["snapshots_dropped"], 1);
  ASSERT_EQ(memory_->compacted().size(), 1U);
  const memory::v1::CompactSessionRequest sent = memory_->compacted()[0];
  EXPECT_EQ(sent.tenant(), "default");
  EXPECT_EQ(sent.memory_policy().window().sinks(), 4);
  EXPECT_EQ(sent.encoding(), snapshot::v1::ENCODING_INT8);
  EXPECT_TRUE(sent.drop_older_snapshots());
  EXPECT_THAT(executor_->forgotten(), ElementsAre("default/s"));
  EXPECT_THAT(Contents("s"), ElementsAre("one", "Hello, world", "two", "Hello, world"));

  const auto stale = Post("/v1/sessions/s/compact", R"({"parent_version":1,"encoding":"fp8"})");
  ErrorOf(stale, 409, "conflict_error");
  EXPECT_EQ(Parse(stale)["error"]["code"], "stale_version");
  ErrorOf(Post("/v1/sessions/none/compact", R"({"encoding":"fp8"})"), 404, "invalid_request_error");
  memory_->SetLease("default/s", 7);
  ErrorOf(Post("/v1/sessions/s/compact", R"({"encoding":"fp8"})"), 409, "conflict_error");
  // What failed has changed nothing, and nobody forgets anything.
  EXPECT_EQ(memory_->compacted().size(), 1U);
  EXPECT_EQ(executor_->forgotten().size(), 1U);
}

TEST_F(SessionVerbsTest, VersionsSayWhatIsStored) {
  StartWithTurns();
  const Json versions = Parse(Http().Get("/v1/sessions/s/versions"));
  ASSERT_EQ(versions["data"].size(), 2U);
  EXPECT_EQ(versions["data"][1]["version"], 2);
  EXPECT_GT(versions["data"][1]["num_tokens"], versions["data"][0]["num_tokens"]);
  EXPECT_EQ(versions["data"][1]["snapshot_tokens"], versions["data"][1]["num_tokens"]);
  EXPECT_EQ(versions["bytes_by_tier"]["redis"], 2000);
  EXPECT_EQ(versions["busy"], false);
  EXPECT_EQ(versions["executor"], executor_.address());
}

TEST_F(SessionVerbsTest, FileGoesOutAndComesBackInWhole) {
  StartWithTurns();
  memory_->export_filler_pieces = 40;  // more than an ordinary body may have
  const auto file = Http().Get("/v1/sessions/s/export");
  ASSERT_EQ(file->status, 200);
  EXPECT_EQ(file->get_header_value("Content-Type"), "application/octet-stream");
  EXPECT_THAT(file->get_header_value("Content-Disposition"), HasSubstr("s.mneme"));
  ASSERT_GT(file->body.size(), size_t{40} << 20);
  const Json made = Parse(
      Http().Post("/v1/sessions/import?session_id=copy", file->body, "application/octet-stream"));
  EXPECT_EQ(made["id"], "copy");
  EXPECT_EQ(memory_->imported_bytes, file->body.size());
  EXPECT_EQ(Contents("copy"), Contents("s"));
  ErrorOf(Http().Post("/v1/sessions/import?session_id=copy", "text", "application/octet-stream"),
          409, "conflict_error");
}

TEST_F(SessionVerbsTest, DamagedAndOversizedFilesAreRefusedAndTheConnectionGoesOn) {
  config_.set_max_import_bytes(1 << 20);
  Start();
  auto client = Http();
  client.set_keep_alive(true);
  const auto damaged = client.Post("/v1/sessions/import",
                                   std::string(500'000, 'x') + "!" + std::string(500'000, 'x'),
                                   "application/octet-stream");
  EXPECT_THAT(ErrorOf(damaged, 400, "invalid_request_error"), HasSubstr("damaged at byte 7"));
  EXPECT_EQ(Parse(damaged)["error"]["code"], "data_loss");
  ErrorOf(client.Post("/v1/sessions/import", std::string(2 << 20, 'x'), "application/octet-stream"),
          413, "invalid_request_error");
  ErrorOf(client.Post("/v1/sessions/import?session_id=a%20b", "x", "application/octet-stream"), 400,
          "invalid_request_error");
  EXPECT_EQ(client.Get("/v1/sessions")->status, 200);
  EXPECT_EQ(Parse(client.Get("/v1/sessions"))["data"].size(), 0U);
}

TEST_F(SessionVerbsTest, DeletingASessionHasExecutorsForgetIt) {
  StartWithTurns();
  EXPECT_EQ(Http().Delete("/v1/sessions/s")->status, 200);
  EXPECT_THAT(executor_->forgotten(), ElementsAre("default/s"));
  ErrorOf(Http().Delete("/v1/sessions/s"), 404, "invalid_request_error");
  EXPECT_EQ(executor_->forgotten().size(), 1U);
}

TEST_F(SessionVerbsTest, OnlyAdministratorsForgetTenants) {
  const std::string admin = AddKey("root", "ops", true);
  const std::string user = AddKey("ada", "acme", false);
  Start();
  ASSERT_EQ(Post("/v1/chat/completions", Chat("hi", {{"session_id", "s"}}), Bearer(user))->status,
            200);
  const auto refused = Http().Delete("/v1/tenants/acme", Bearer(user));
  ErrorOf(refused, 403, "permission_error");
  EXPECT_EQ(Http().Get("/v1/sessions/s", Bearer(user))->status, 200);
  ErrorOf(Http().Delete("/v1/tenants/acme"), 401, "authentication_error");
  ErrorOf(Http().Delete("/v1/tenants/a%20b", Bearer(admin)), 400, "invalid_request_error");
  EXPECT_EQ(Parse(Http().Delete("/v1/tenants/acme", Bearer(admin)))["sessions"], 1);
  EXPECT_EQ(Http().Get("/v1/sessions/s", Bearer(user))->status, 404);
  EXPECT_THAT(executor_->forgotten(), Contains("acme/"));

  const auto stub = v1::AdminService::NewStub(Channel());
  v1::ForgetTenantRequest forget;
  forget.set_tenant("acme");
  v1::ForgetTenantResponse forgotten;
  grpc::ClientContext context;
  context.AddMetadata("authorization", "Bearer " + user);
  EXPECT_EQ(stub->ForgetTenant(&context, forget, &forgotten).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(SessionVerbsTest, GrpcHasTheSameVerbs) {
  StartWithTurns();
  const auto stub = v1::SessionService::NewStub(Channel());
  v1::ForkSessionRequest fork;
  fork.set_session_id("s");
  fork.set_version(1);
  fork.set_new_session_id("f");
  v1::ForkSessionResponse forked;
  grpc::ClientContext fork_context;
  ASSERT_TRUE(stub->ForkSession(&fork_context, fork, &forked).ok());
  EXPECT_EQ(forked.session().version(), 1U);
  EXPECT_EQ(forked.session().parent_session(), "s");

  v1::RewindSessionRequest rewind;
  rewind.set_session_id("s");
  rewind.set_version(7);
  v1::RewindSessionResponse rewound;
  grpc::ClientContext rewind_context;
  EXPECT_EQ(stub->RewindSession(&rewind_context, rewind, &rewound).error_code(),
            grpc::StatusCode::OUT_OF_RANGE);

  v1::CompactSessionRequest compact;
  compact.set_session_id("s");
  compact.set_encoding(v1::COMPACT_ENCODING_FP8);
  v1::CompactSessionResponse compacted;
  grpc::ClientContext compact_context;
  ASSERT_TRUE(stub->CompactSession(&compact_context, compact, &compacted).ok());
  EXPECT_EQ(compacted.kv_bytes_after(), 1000);
  compact.set_encoding(static_cast<v1::CompactEncoding>(9));
  grpc::ClientContext wrong_context;
  EXPECT_EQ(stub->CompactSession(&wrong_context, compact, &compacted).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  v1::DescribeSessionRequest describe;
  describe.set_session_id("s");
  v1::DescribeSessionResponse described;
  grpc::ClientContext describe_context;
  ASSERT_TRUE(stub->DescribeSession(&describe_context, describe, &described).ok());
  EXPECT_EQ(described.versions_size(), 2);
  EXPECT_EQ(described.bytes_by_tier().at("redis"), 2000);

  v1::UpdateSessionRequest update;
  update.set_session_id("s");
  update.set_pinned(true);
  v1::UpdateSessionResponse updated;
  grpc::ClientContext update_context;
  ASSERT_TRUE(stub->UpdateSession(&update_context, update, &updated).ok());
  EXPECT_TRUE(updated.session().pinned());

  v1::ExportSessionRequest write;
  write.set_session_id("s");
  grpc::ClientContext export_context;
  const auto reader = stub->ExportSession(&export_context, write);
  std::vector<std::string> pieces;
  v1::ExportSessionResponse piece;
  while (reader->Read(&piece)) pieces.push_back(piece.piece());
  ASSERT_TRUE(reader->Finish().ok());
  ASSERT_EQ(pieces.size(), 4U);

  v1::ImportSessionResponse imported;
  grpc::ClientContext import_context;
  const auto writer = stub->ImportSession(&import_context, &imported);
  v1::ImportSessionRequest part;
  part.mutable_header()->set_session_id("copy");
  ASSERT_TRUE(writer->Write(part));
  for (const std::string& each : pieces) {
    part.set_piece(each);
    ASSERT_TRUE(writer->Write(part));
  }
  writer->WritesDone();
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(imported.session().session_id(), "copy");
  EXPECT_EQ(Contents("copy"), Contents("s"));

  // What is broken off imports nothing.
  grpc::ClientContext broken_context;
  const auto broken = stub->ImportSession(&broken_context, &imported);
  part.mutable_header()->set_session_id("half");
  ASSERT_TRUE(broken->Write(part));
  part.set_piece("text\n");
  ASSERT_TRUE(broken->Write(part));
  broken_context.TryCancel();
  broken->Finish();
  grpc::ClientContext headless_context;
  const auto headless = stub->ImportSession(&headless_context, &imported);
  headless->Write(part);
  headless->WritesDone();
  EXPECT_EQ(headless->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Http().Get("/v1/sessions/half")->status, 404);
}

}  // namespace
}  // namespace mneme::gateway
