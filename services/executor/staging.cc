#include "services/executor/staging.h"

#include <utility>

#include "common/crypto/sha256.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"

namespace mneme::executor {
namespace {

constexpr size_t kDigestBytes = 16;

int64_t NowNs() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

std::string DigestOf(const std::string& payload) {
  std::string digest = crypto::Sha256(payload);
  digest.resize(kDigestBytes);
  return digest;
}

}  // namespace

Staging::Staging(TurnIdentity turn, memory::v1::MemoryService::StubInterface* stub,
                 Scheduler schedule, HostCache* host_cache, std::shared_ptr<EngineSignal> signal)
    : turn_(std::move(turn)),
      stub_(stub),
      schedule_(std::move(schedule)),
      host_cache_(host_cache),
      signal_(std::move(signal)) {}

void Staging::Add(snapshot::EncodedChunk chunk) {
  const int64_t bytes = static_cast<int64_t>(chunk.payload.size());
  Push(std::move(chunk), bytes);
}

void Staging::Finish(snapshot::v1::Manifest manifest) { Push(std::move(manifest), 0); }

void Staging::Push(Item item, int64_t bytes) {
  {
    sync::MutexLock lock(mutex_);
    if (done_) return;
    items_.push_back(std::move(item));
    pending_bytes_ += bytes;
    if (std::exchange(is_scheduled_, true)) return;
  }
  if (!schedule_([self = shared_from_this()] { self->Work(); })) {
    Cancel(absl::ResourceExhaustedError("too many snapshots are waiting to be stored"));
  }
}

void Staging::Cancel(absl::Status why) {
  SetResult(std::move(why));
  context_.TryCancel();
}

std::chrono::steady_clock::duration Staging::stalled_for() const {
  const int64_t since = busy_since_ns_.load(std::memory_order_relaxed);
  return std::chrono::steady_clock::duration(since == 0 ? 0 : NowNs() - since);
}

absl::StatusOr<memory::v1::StageSnapshotResponse> Staging::result() const {
  sync::MutexLock lock(mutex_);
  return result_;
}

void Staging::SetResult(absl::StatusOr<memory::v1::StageSnapshotResponse> result) {
  {
    sync::MutexLock lock(mutex_);
    if (done_) return;
    result_ = std::move(result);
    items_.clear();
    done_.store(true, std::memory_order_release);
  }
  signal_->Notify();
}

void Staging::Work() {
  for (;;) {
    Item item;
    {
      sync::MutexLock lock(mutex_);
      if (items_.empty()) {
        is_scheduled_ = false;
        return;
      }
      item = std::move(items_.front());
      items_.pop_front();
    }
    const snapshot::EncodedChunk* const chunk = std::get_if<snapshot::EncodedChunk>(&item);
    const int64_t bytes = chunk == nullptr ? 0 : static_cast<int64_t>(chunk->payload.size());
    busy_since_ns_ = NowNs();
    const bool is_sent = Send(std::move(item));
    busy_since_ns_ = 0;
    pending_bytes_ -= bytes;
    if (is_sent) {
      sent_bytes_ += bytes;
      // What was held back can come now.
      if (bytes > 0) signal_->Notify();
    } else {
      const grpc::Status status = writer_->Finish();
      SetResult(status.ok() ? absl::InternalError("the memory service ended the snapshot early")
                            : rpc::FromGrpc(status));
    }
  }
}

bool Staging::Send(Item item) {
  if (is_done()) return true;
  if (writer_ == nullptr && !Open()) return false;
  memory::v1::StageSnapshotRequest request;
  if (snapshot::EncodedChunk* const encoded = std::get_if<snapshot::EncodedChunk>(&item)) {
    memory::v1::ChunkPayload& sent = *request.mutable_chunk();
    snapshot::v1::Chunk& chunk = *sent.mutable_chunk();
    chunk = std::move(encoded->chunk);
    chunk.set_digest(DigestOf(encoded->payload));
    digests_[{chunk.first_serial(), chunk.first_layer()}] = chunk.digest();
    if (host_cache_->is_enabled()) {
      const auto payload = std::make_shared<const std::string>(std::move(encoded->payload));
      sent.set_payload(*payload);
      sync::MutexLock lock(mutex_);
      // Once cancelled, nothing of the turn may appear there any more.
      if (done_) return true;
      host_cache_->Put(turn_.tenant, turn_.session_id, chunk.digest(), payload);
    } else {
      sent.set_payload(std::move(encoded->payload));
    }
    return writer_->Write(request);
  }
  snapshot::v1::Manifest& manifest = *request.mutable_manifest();
  manifest = std::get<snapshot::v1::Manifest>(std::move(item));
  for (snapshot::v1::Chunk& chunk : *manifest.mutable_chunks()) {
    if (chunk.digest().empty()) {
      chunk.set_digest(digests_[{chunk.first_serial(), chunk.first_layer()}]);
    }
  }
  if (!writer_->Write(request) || !writer_->WritesDone()) return false;
  const grpc::Status status = writer_->Finish();
  if (status.ok()) {
    SetResult(std::move(response_));
  } else {
    SetResult(rpc::FromGrpc(status));
  }
  return true;
}

bool Staging::Open() {
  rpc::Prepare(turn_.trace, absl::InfiniteFuture(), &context_);
  // A service that restarts is waited for; the engine limits how long.
  context_.set_wait_for_ready(true);
  writer_ = stub_->StageSnapshot(&context_, &response_);
  memory::v1::StageSnapshotRequest request;
  memory::v1::StageSnapshotRequest::Header& header = *request.mutable_header();
  header.set_tenant(turn_.tenant);
  header.set_session_id(turn_.session_id);
  header.set_lease_token(turn_.lease_token);
  header.set_parent_version(turn_.parent_version);
  return writer_->Write(request);
}

}  // namespace mneme::executor
