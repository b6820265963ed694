// The memory service's half of staging and fetching, in memory, for tests of the executor: strict
// about the contract, and able to fail where a test wants it to.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/crypto/crc32c.h"
#include "common/crypto/sha256.h"
#include "common/sync/mutex.h"
#include "mneme/memory/v1/memory.grpc.pb.h"

namespace mneme::executor {

// A function that a test sets while calls run: the next one sees it. Thread-safe.
template <typename Result, typename... Arguments>
class Hook {
 public:
  using Function = std::function<Result(Arguments...)>;

  Hook& operator=(Function function) {
    sync::MutexLock lock(mutex_);
    function_ = std::move(function);
    return *this;
  }
  // Nothing is set: returns a Result of its own, grpc::Status::OK where it is one.
  Result operator()(Arguments... arguments) const {
    Function function;
    {
      sync::MutexLock lock(mutex_);
      function = function_;
    }
    return function ? function(arguments...) : Result();
  }

 private:
  mutable sync::Mutex mutex_;
  Function function_ ABSL_GUARDED_BY(mutex_);
};

class FakeMemoryService final : public memory::v1::MemoryService::Service {
 public:
  // Called where named; anything but OK ends the call with it.
  Hook<grpc::Status> at_stage, at_staged_chunk, at_manifest;
  Hook<grpc::Status> at_look, at_fetch, at_fetched_chunk;
  Hook<void, std::string*> damage;  // of a payload that is fetched
  Hook<void, snapshot::v1::Manifest*> change_manifest;

  // Makes a staged snapshot the session's one of `version`, as CommitTurn does. False: unknown id.
  bool Commit(const std::string& tenant, const std::string& session, uint64_t version,
              const std::string& snapshot_id) {
    sync::MutexLock lock(mutex_);
    const auto staged = staged_.find(snapshot_id);
    if (staged == staged_.end()) return false;
    committed_[tenant + "/" + session][version] = staged->second;
    return true;
  }
  // Stores a snapshot's chunks under other digests and drops the old ones, as a compaction does.
  void Rewrite(const std::string& tenant, const std::string& session, uint64_t version) {
    sync::MutexLock lock(mutex_);
    for (auto& chunk : *committed_[tenant + "/" + session][version].mutable_chunks()) {
      std::string payload = std::move(payloads_.at(chunk.digest()));
      payloads_.erase(chunk.digest());
      for (char& byte : *chunk.mutable_digest()) byte ^= 1;
      payloads_[chunk.digest()] = std::move(payload);
    }
  }
  // Gives another session what one has, as a fork does.
  void Fork(const std::string& tenant, const std::string& from, const std::string& to) {
    sync::MutexLock lock(mutex_);
    committed_[tenant + "/" + to] = committed_[tenant + "/" + from];
  }

  int64_t num_chunks_received() const {
    sync::MutexLock lock(mutex_);
    return num_chunks_received_;
  }
  int64_t num_chunks_sent() const {
    sync::MutexLock lock(mutex_);
    return num_chunks_sent_;
  }
  snapshot::v1::Manifest Committed(const std::string& tenant, const std::string& session,
                                   uint64_t version) const {
    sync::MutexLock lock(mutex_);
    return committed_.at(tenant + "/" + session).at(version);
  }

  grpc::Status StageSnapshot(grpc::ServerContext*,
                             grpc::ServerReader<memory::v1::StageSnapshotRequest>* reader,
                             memory::v1::StageSnapshotResponse* response) override {
    if (const grpc::Status status = at_stage(); !status.ok()) return status;
    memory::v1::StageSnapshotRequest request;
    if (!reader->Read(&request) || !request.has_header()) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "no header"};
    }
    std::map<std::pair<uint64_t, int32_t>, std::string> digests;  // by first serial and layer
    while (reader->Read(&request)) {
      if (request.has_chunk()) {
        if (const grpc::Status status = at_staged_chunk(); !status.ok()) return status;
        const snapshot::v1::Chunk& chunk = request.chunk().chunk();
        const std::string& payload = request.chunk().payload();
        if (chunk.num_bytes() != payload.size() || chunk.crc32c() != crypto::Crc32c(payload)) {
          return {grpc::StatusCode::DATA_LOSS, "payload does not fit"};
        }
        const std::string digest = crypto::Sha256(payload).substr(0, 16);
        digests[{chunk.first_serial(), chunk.first_layer()}] = digest;
        sync::MutexLock lock(mutex_);
        ++num_chunks_received_;
        response->set_bytes_stored(response->bytes_stored() + chunk.num_bytes());
        payloads_[digest] = payload;
        continue;
      }
      if (const grpc::Status status = at_manifest(); !status.ok()) return status;
      sync::MutexLock lock(mutex_);
      for (snapshot::v1::Chunk& chunk : *request.mutable_manifest()->mutable_chunks()) {
        if (chunk.digest().empty()) {
          chunk.set_digest(digests[{chunk.first_serial(), chunk.first_layer()}]);
        }
        if (!payloads_.contains(chunk.digest())) {
          return {grpc::StatusCode::INVALID_ARGUMENT, "a chunk was never sent"};
        }
      }
      response->set_snapshot_id(absl::StrCat("snapshot-", staged_.size()));
      staged_[response->snapshot_id()] = request.manifest();
      *response->mutable_manifest() = request.manifest();
      return grpc::Status::OK;
    }
    return {grpc::StatusCode::CANCELLED, "no manifest"};
  }

  grpc::Status FetchSnapshot(
      grpc::ServerContext*, const memory::v1::FetchSnapshotRequest* request,
      grpc::ServerWriter<memory::v1::FetchSnapshotResponse>* writer) override {
    const auto& hook = request->manifest_only() ? at_look : at_fetch;
    if (const grpc::Status status = hook(); !status.ok()) return status;
    memory::v1::FetchSnapshotResponse response;
    std::vector<std::pair<int, std::string>> payloads;
    {
      sync::MutexLock lock(mutex_);
      const auto session = committed_.find(request->tenant() + "/" + request->session_id());
      if (session == committed_.end()) return {grpc::StatusCode::NOT_FOUND, "no such session"};
      auto version = session->second.upper_bound(request->version());
      if (version == session->second.begin()) return {grpc::StatusCode::NOT_FOUND, "no snapshot"};
      --version;
      response.mutable_found()->set_version(version->first);
      snapshot::v1::Manifest& manifest = *response.mutable_found()->mutable_manifest();
      manifest = version->second;
      for (const int index : request->chunks()) {
        payloads.emplace_back(index, payloads_.at(manifest.chunks(index).digest()));
      }
    }
    change_manifest(response.mutable_found()->mutable_manifest());
    writer->Write(response);
    if (request->manifest_only()) return grpc::Status::OK;
    for (auto& [index, payload] : payloads) {
      if (const grpc::Status status = at_fetched_chunk(); !status.ok()) return status;
      damage(&payload);
      response.mutable_chunk()->set_index(index);
      response.mutable_chunk()->set_payload(std::move(payload));
      response.mutable_chunk()->set_tier("redis");
      {
        sync::MutexLock lock(mutex_);
        ++num_chunks_sent_;
      }
      if (!writer->Write(response)) break;
    }
    return grpc::Status::OK;
  }

 private:
  mutable sync::Mutex mutex_;
  std::map<std::string, std::string> payloads_ ABSL_GUARDED_BY(mutex_);  // by digest
  std::map<std::string, snapshot::v1::Manifest> staged_ ABSL_GUARDED_BY(mutex_);
  // tenant/session -> version -> manifest
  std::map<std::string, std::map<uint64_t, snapshot::v1::Manifest>> committed_
      ABSL_GUARDED_BY(mutex_);
  int64_t num_chunks_received_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t num_chunks_sent_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace mneme::executor
