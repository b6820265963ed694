// Exports and imports, on both stores and from one to the other; files that are not whole.
#include "services/memory/session_transfer.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memory/store_fixture.h"

namespace mneme::memory {
namespace {

using ::mneme::testing::RedisServer;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class SessionTransferTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto started = RedisServer::Start({.append_fsync = "no"});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  static void TearDownTestSuite() { server_.reset(); }

  SessionTransferTest() {
    // The same session in both: three turns, the first and the third with a snapshot.
    for (SessionStore* store : {&in_memory(), &redis()}) {
      v1::CreateSessionRequest create = CreateOf("s");
      create.set_title("the title");
      create.mutable_memory_policy()->mutable_window()->set_recent(64);
      EXPECT_TRUE(store->CreateSession(create, Soon()).ok());
      const StagedTurn first =
          CommitWithSnapshot(*store, "s", {PayloadOf("a"), PayloadOf("b", 700'000)});
      const auto lease = store->AcquireLease(AcquireOf("s"), Soon());
      v1::CommitTurnRequest commit =
          CommitOf("s", lease->lease_token(), 1, std::string(1'500'000, 'x'), "r2");
      commit.set_release(true);
      EXPECT_TRUE(store->CommitTurn(commit, Soon()).ok());
      EXPECT_EQ(
          CommitWithSnapshot(*store, "s", {PayloadOf("c", 600'000)}, first.manifest, 2).version,
          3u);
    }
  }

  SessionStore& in_memory() { return in_memory_.store(); }
  SessionStore& redis() { return redis_.store(); }

  static absl::StatusOr<std::string> Export(SessionStore& store, bool without_snapshot = false) {
    v1::ExportSessionRequest request;
    request.set_tenant("t");
    request.set_session_id("s");
    request.set_without_snapshot(without_snapshot);
    std::string file;
    const auto append = [&file](const std::string& piece) {
      EXPECT_LE(piece.size(), 1u << 20);
      file += piece;
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(ExportSession(store, request, append, Soon()));
    return file;
  }

  static absl::StatusOr<v1::Session> Import(SessionStore& store, absl::string_view file,
                                            const std::string& session_id = "copy",
                                            size_t piece_bytes = 100'000) {
    v1::ImportSessionRequest::Header header;
    header.set_tenant("t");
    header.set_session_id(session_id);
    SessionImporter importer(store, header, Soon());
    while (!file.empty()) {
      const absl::string_view piece = file.substr(0, piece_bytes);
      RETURN_IF_ERROR(importer.Add(piece));
      file.remove_prefix(piece.size());
    }
    ASSIGN_OR_RETURN(const v1::ImportSessionResponse response, importer.Finish());
    return response.session();
  }

  static inline std::unique_ptr<RedisServer> server_;
  InMemoryUnderTest in_memory_;
  RedisUnderTest redis_{server_->address()};
};

TEST_F(SessionTransferTest, SessionGoesFromAnyStoreToAnyOther) {
  for (SessionStore* from : {&in_memory(), &redis()}) {
    const auto file = Export(*from);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_LT(file->size(), 4'400'000u);  // 3.0 MB of text, 1.3 MB of chunks, each once
    for (SessionStore* to : {&in_memory(), &redis()}) {
      const std::string id = absl::StrCat("copy-", from == &redis());
      const auto imported = Import(*to, *file, id);
      ASSERT_TRUE(imported.ok()) << imported.status();
      EXPECT_EQ(imported->session_id(), id);
      EXPECT_EQ(imported->title(), "the title");
      EXPECT_EQ(imported->version(), 3u);
      EXPECT_EQ(imported->memory_policy().window().recent(), 64);
      const auto original = to->GetSession(GetOf("s"), Soon());
      auto copy = to->GetSession(GetOf(id), Soon());
      ASSERT_TRUE(copy.ok()) << copy.status();
      EXPECT_EQ(copy->session().kv_bytes(), original->session().kv_bytes());
      EXPECT_EQ(copy->session().num_tokens(), original->session().num_tokens());
      *copy->mutable_session() = original->session();
      EXPECT_EQ(copy->SerializeAsString(), original->SerializeAsString());
      for (const uint64_t version : {1, 2, 3}) {
        EXPECT_EQ(Fetch(*to, id, version)->payloads, Fetch(*to, "s", version)->payloads);
      }
      // A turn that was committed before is known, and the next one can be.
      v1::AcquireLeaseRequest acquire = AcquireOf(id);
      acquire.set_request_id("r2");
      EXPECT_EQ(to->AcquireLease(acquire, Soon())->committed().version(), 2u);
      EXPECT_EQ(CommitWithSnapshot(*to, id, {PayloadOf("d")}, {}, 3).version, 4u);
    }
  }
}

TEST_F(SessionTransferTest, PiecesOfAnySizeMakeTheSameSession) {
  const auto file = Export(redis(), /*without_snapshot=*/true);
  ASSERT_TRUE(file.ok()) << file.status();
  int count = 0;
  for (const size_t piece_bytes : {size_t{977}, size_t{65'536}, file->size()}) {
    const auto imported = Import(in_memory(), *file, absl::StrCat("copy-", count++), piece_bytes);
    ASSERT_TRUE(imported.ok()) << imported.status();
    EXPECT_EQ(imported->kv_bytes(), 0);
    EXPECT_EQ(imported->num_messages(), 6);
  }
}

TEST_F(SessionTransferTest, TakenIdIsRefusedAndTheFilesOwnIsUsedWhereNoneIsGiven) {
  const auto file = Export(redis());
  for (SessionStore* store : {&in_memory(), &redis()}) {
    EXPECT_TRUE(absl::IsAlreadyExists(Import(*store, *file, "s").status()));
    EXPECT_TRUE(absl::IsAlreadyExists(Import(*store, *file, "").status()));
    v1::DeleteSessionRequest remove;
    remove.set_tenant("t");
    remove.set_session_id("s");
    ASSERT_TRUE(store->DeleteSession(remove, Soon()).ok());
    EXPECT_EQ(Import(*store, *file, "")->session_id(), "s");
  }
}

TEST_F(SessionTransferTest, AnyChangedByteIsRefusedWithItsPlace) {
  const std::string file = *Export(redis(), /*without_snapshot=*/true);
  // Every byte of the records' frames and many of what is in them.
  for (size_t at = 0; at < file.size(); at += at < 400 ? 1 : 50'021) {
    std::string changed = file;
    changed[at] ^= 0x20;
    const absl::Status status = Import(in_memory(), changed).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << at << ": " << status;
    EXPECT_THAT(std::string(status.message()), ContainsRegex("record [0-9]+, at byte [0-9]+"));
  }
  for (size_t back = 1; back < 45; ++back) {
    std::string changed = file;
    changed[file.size() - back] ^= 1;
    EXPECT_EQ(Import(in_memory(), changed).status().code(), absl::StatusCode::kDataLoss) << back;
  }
  EXPECT_TRUE(absl::IsNotFound(in_memory().GetSession(GetOf("copy"), Soon()).status()));
}

TEST_F(SessionTransferTest, FileThatIsCutOrGoesOnIsRefused) {
  const std::string file = *Export(redis(), /*without_snapshot=*/true);
  for (size_t size = 0; size < file.size(); size += size < 400 ? 1 : 100'003) {
    EXPECT_EQ(Import(in_memory(), file.substr(0, size)).status().code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
  EXPECT_EQ(Import(in_memory(), file.substr(0, file.size() - 1)).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(Import(in_memory(), file + "x").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::IsNotFound(in_memory().GetSession(GetOf("copy"), Soon()).status()));
}

TEST_F(SessionTransferTest, RefusedImportLeavesNothingInRedisThatStays) {
  const std::string file = *Export(redis());
  const auto keys_before = redis_.client().Run({"DBSIZE"})->Integer();
  EXPECT_FALSE(Import(redis(), file.substr(0, file.size() - 1)).ok());
  EXPECT_TRUE(absl::IsNotFound(redis().GetSession(GetOf("copy"), Soon()).status()));
  int num_staying = 0;
  const redis::Reply keys = *redis_.client().Run({"KEYS", "*"});
  for (const auto& key : keys.elements()) {
    if (*redis_.client().Run({"PTTL", key.text()})->Integer() < 0) ++num_staying;
  }
  EXPECT_EQ(num_staying, *keys_before);
}

TEST_F(SessionTransferTest, SnapshotsWithLostChunksAreLeftOutAndTheTextIsNot) {
  const std::string family = redis_.client().Run({"HGET", "mneme:2:{t}:families", "s"})->text();
  const redis::Reply chunks = *redis_.client().Run({"KEYS", absl::StrCat("*", family, "}:c:*")});
  ASSERT_EQ(chunks.elements().size(), 3u);
  for (const auto& key : chunks.elements()) {
    if (*redis_.client().Run({"STRLEN", key.text()})->Integer() > 650'000) {
      ASSERT_TRUE(redis_.client().Run({"DEL", key.text()}).ok());  // b, listed by both
    }
  }
  const auto file = Export(redis());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto imported = Import(in_memory(), *file);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->version(), 3u);
  EXPECT_EQ(imported->kv_bytes(), 0);
}

TEST_F(SessionTransferTest, CraftedFileCannotNameASessionThatCannotBe) {
  for (const char* id : {"a/b", "a}b", ""}) {
    std::string file;
    SessionFileWriter writer([&file](const std::string& piece) {
      file += piece;
      return absl::OkStatus();
    });
    v1::Session session;
    session.set_session_id(id);
    session.set_model("m");
    ASSERT_TRUE(writer.Add(RecordKind::kSession, session.SerializeAsString()).ok());
    ASSERT_TRUE(writer.Finish().ok());
    EXPECT_EQ(Import(redis(), file, "").status().code(), absl::StatusCode::kDataLoss) << id;
  }
}

}  // namespace
}  // namespace mneme::memory
