#include "services/executor/staging.h"

#include <utility>

#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"

namespace mneme::executor {
namespace {

int64_t NowNs() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

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
    if (!result.ok()) DropCopies();
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
  if (snapshot::EncodedChunk* const chunk = std::get_if<snapshot::EncodedChunk>(&item)) {
    return SendChunk(std::move(*chunk));
  }
  return SendManifest(std::get<snapshot::v1::Manifest>(std::move(item)));
}

bool Staging::SendChunk(snapshot::EncodedChunk encoded) {
  const auto request = std::make_shared<memory::v1::StageSnapshotRequest>();
  memory::v1::ChunkPayload& sent = *request->mutable_chunk();
  *sent.mutable_chunk() = std::move(encoded.chunk);
  sent.set_payload(std::move(encoded.payload));
  // The message is what is kept: its payload need not be copied.
  if (host_cache_->is_enabled()) Keep(sent.chunk(), Payload(request, &sent.payload()));
  return writer_->Write(*request);
}

bool Staging::SendManifest(snapshot::v1::Manifest manifest) {
  memory::v1::StageSnapshotRequest request;
  *request.mutable_manifest() = std::move(manifest);
  if (!writer_->Write(request) || !writer_->WritesDone()) return false;
  const grpc::Status status = writer_->Finish();
  if (!status.ok()) {
    SetResult(rpc::FromGrpc(status));
    return true;
  }
  NameCopies(response_.manifest());
  SetResult(std::move(response_));
  return true;
}

void Staging::Keep(const snapshot::v1::Chunk& chunk, Payload payload) {
  sync::MutexLock lock(mutex_);
  // Once cancelled, nothing of the turn may come there any more.
  if (done_) return;
  Copy& copy = copies_[{chunk.first_serial(), chunk.first_layer()}];
  if (copy.unnamed != 0) host_cache_->DropUnnamed(copy.unnamed);
  copy = {.unnamed = host_cache_->PutUnnamed(turn_.tenant, turn_.session_id, std::move(payload)),
          .num_bytes = chunk.num_bytes(),
          .crc32c = chunk.crc32c()};
}

void Staging::NameCopies(const snapshot::v1::Manifest& stored) {
  sync::MutexLock lock(mutex_);
  if (done_) return;
  for (const snapshot::v1::Chunk& chunk : stored.chunks()) {
    const auto found = copies_.find({chunk.first_serial(), chunk.first_layer()});
    if (found == copies_.end()) continue;
    const Copy& copy = found->second;
    if (copy.num_bytes != chunk.num_bytes() || copy.crc32c != chunk.crc32c()) continue;
    host_cache_->Name(copy.unnamed, chunk.digest());
    copies_.erase(found);
  }
  DropCopies();  // of chunks that were sent and are not listed
}

void Staging::DropCopies() {
  for (const auto& [place, copy] : copies_) host_cache_->DropUnnamed(copy.unnamed);
  copies_.clear();
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
