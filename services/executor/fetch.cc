#include "services/executor/fetch.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/rpc/client.h"
#include "common/rpc/grpc_status.h"
#include "common/snapshot/manifest.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::executor {
namespace {

int RankOf(absl::string_view tier) {
  if (tier == "disk") return 3;
  if (tier == "redis") return 2;
  return tier == "host" ? 1 : 0;
}

memory::v1::FetchSnapshotRequest RequestOf(const FetchRequest& request, uint64_t version) {
  memory::v1::FetchSnapshotRequest fetch;
  fetch.set_tenant(request.turn.tenant);
  fetch.set_session_id(request.turn.session_id);
  fetch.set_version(version);
  return fetch;
}

}  // namespace

Fetch::Fetch(FetchRequest request, const FetchOptions& options,
             memory::v1::MemoryService::StubInterface* stub, HostCache* host_cache,
             std::shared_ptr<EngineSignal> signal)
    : request_(std::move(request)),
      options_(options),
      stub_(stub),
      host_cache_(host_cache),
      signal_(std::move(signal)) {}

void Fetch::Run() {
  absl::Status status = Look();
  if (status.ok() && state() == State::kArriving) status = GetChunks();
  if (status.ok()) return;
  {
    sync::MutexLock lock(mutex_);
    status_ = std::move(status);
  }
  state_.store(State::kFailed, std::memory_order_release);
  signal_->Notify();
}

absl::Status Fetch::Look() {
  rpc::Prepare(request_.turn.trace, absl::Now() + options_.manifest_timeout, &look_context_);
  look_context_.set_wait_for_ready(true);
  memory::v1::FetchSnapshotRequest fetch = RequestOf(request_, request_.version);
  fetch.set_manifest_only(true);
  const auto reader = stub_->FetchSnapshot(&look_context_, fetch);
  memory::v1::FetchSnapshotResponse response;
  bool is_found = false;
  while (reader->Read(&response)) {
    if (!response.has_found()) continue;
    is_found = true;
    version_ = response.found().version();
    manifest_ = std::move(*response.mutable_found()->mutable_manifest());
  }
  RETURN_IF_ERROR(rpc::FromGrpc(reader->Finish()));
  if (!is_found) return absl::DataLossError("the memory service sent no manifest");
  policy_ = StoredPolicy(manifest_.lineage().policy());
  snapshot::v1::Lineage lineage = request_.lineage;
  lineage.set_policy(policy_->Describe());
  RETURN_IF_ERROR(
      snapshot::CheckManifest(manifest_, lineage, request_.shape, *policy_, request_.tokens));
  const int64_t gained = static_cast<int64_t>(manifest_.num_tokens()) - request_.num_present;
  const bool is_enough = request_.num_present > 0 && gained <= request_.worthwhile_tokens &&
                         request_.present_policy->CanFollow(*policy_);
  state_.store(is_enough ? State::kEnough : State::kArriving, std::memory_order_release);
  signal_->Notify();
  return absl::OkStatus();
}

std::shared_ptr<const memory::MemoryPolicy> Fetch::StoredPolicy(const std::string& stored) const {
  if (auto own = request_.choice.Become(stored)) return own;
  const std::shared_ptr<const memory::MemoryPolicy>& wanted = request_.choice.policy;
  // Only full and windows are wider than others, and told by their text.
  auto wider = memory::FullPolicy()->TighterOf(stored);
  return wider != nullptr && wanted->CanFollow(*wider) ? wider : wanted;
}

absl::Status Fetch::GetChunks() {
  memory::v1::FetchSnapshotRequest fetch = RequestOf(request_, version_);
  int64_t missing_bytes = 0;
  std::vector<Arrived> at_hand;
  for (int i = 0; i < manifest_.chunks_size(); ++i) {
    Payload payload = host_cache_->Get(request_.turn.tenant, manifest_.chunks(i).digest());
    if (payload != nullptr) {
      at_hand.push_back({i, std::move(payload)});
    } else {
      fetch.add_chunks(i);
      missing_bytes += manifest_.chunks(i).num_bytes();
    }
  }
  // The call is made first, so that the service is at work while the copies at hand are taken.
  const absl::Duration timeout =
      options_.chunk_timeout + absl::Seconds(static_cast<double>(missing_bytes) /
                                             static_cast<double>(options_.min_bytes_per_second));
  std::unique_ptr<grpc::ClientReaderInterface<memory::v1::FetchSnapshotResponse>> reader;
  if (fetch.chunks_size() > 0) {
    rpc::Prepare(request_.turn.trace, absl::Now() + timeout, &chunk_context_);
    chunk_context_.set_wait_for_ready(true);
    reader = stub_->FetchSnapshot(&chunk_context_, fetch);
  }
  for (Arrived& arrived : at_hand) {
    NoteTier("host");
    if (!Push(std::move(arrived))) break;
  }
  if (reader == nullptr) return absl::OkStatus();
  memory::v1::FetchSnapshotResponse response;
  int num_fetched = 0;
  while (reader->Read(&response)) {
    if (response.has_found()) continue;
    memory::v1::FetchSnapshotResponse::FetchedChunk& chunk = *response.mutable_chunk();
    if (num_fetched == fetch.chunks_size() || chunk.index() != fetch.chunks(num_fetched)) {
      chunk_context_.TryCancel();
      reader->Finish();
      return absl::DataLossError("the memory service sent a chunk that was not asked for");
    }
    ++num_fetched;
    fetched_bytes_ += static_cast<int64_t>(chunk.payload().size());
    NoteTier(chunk.tier());
    auto payload = std::make_shared<const std::string>(std::move(*chunk.mutable_payload()));
    if (!Push({chunk.index(), std::move(payload)})) break;
  }
  RETURN_IF_ERROR(rpc::FromGrpc(reader->Finish()));
  if (num_fetched < fetch.chunks_size()) {
    return absl::DataLossError(absl::StrCat("the memory service sent too few chunks: ", num_fetched,
                                            " of ", fetch.chunks_size()));
  }
  return absl::OkStatus();
}

bool Fetch::Push(Arrived arrived) {
  {
    sync::MutexLock lock(mutex_);
    while (ready_bytes_ > options_.max_ready_bytes && !is_cancelled()) taken_.Wait(mutex_);
    if (is_cancelled()) return false;
    ready_bytes_ += static_cast<int64_t>(arrived.payload->size());
    ready_.push_back(std::move(arrived));
  }
  signal_->Notify();
  return true;
}

std::optional<Fetch::Arrived> Fetch::TryPop() {
  sync::MutexLock lock(mutex_);
  if (ready_.empty()) return std::nullopt;
  Arrived arrived = std::move(ready_.front());
  ready_.pop_front();
  ready_bytes_ -= static_cast<int64_t>(arrived.payload->size());
  taken_.NotifyAll();
  return arrived;
}

void Fetch::Cancel() {
  {
    sync::MutexLock lock(mutex_);
    cancelled_ = true;
    ready_.clear();
    ready_bytes_ = 0;
    taken_.NotifyAll();
  }
  look_context_.TryCancel();
  chunk_context_.TryCancel();
}

absl::Status Fetch::status() const {
  sync::MutexLock lock(mutex_);
  return status_;
}

std::string Fetch::tier() const {
  sync::MutexLock lock(mutex_);
  return tier_;
}

void Fetch::NoteTier(absl::string_view tier) {
  sync::MutexLock lock(mutex_);
  if (RankOf(tier) > RankOf(tier_)) tier_ = std::string(tier);
}

}  // namespace mneme::executor
