#include "services/memory/chunk_promoter.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace mneme::memory {
namespace {

constexpr size_t kMaxWaitingBytes = 64 << 20;
constexpr absl::Duration kPromotionTimeout = absl::Seconds(5);
// A Redis that was full is not sent chunks for nothing again and again.
constexpr absl::Duration kFullPause = absl::Seconds(10);

}  // namespace

ChunkPromoter::ChunkPromoter(FamilyDirectory& directory, DiskTier& disk, int64_t redis_budget_bytes,
                             MemoryMetrics& metrics)
    : directory_(directory),
      disk_(disk),
      redis_budget_bytes_(redis_budget_bytes),
      metrics_(metrics),
      thread_([this](const std::stop_token& stop) { Run(stop); }) {}

ChunkPromoter::~ChunkPromoter() {
  sync::MutexLock lock(mutex_);
  thread_.request_stop();
  changed_.NotifyAll();
}

bool ChunkPromoter::HasRoomFor(size_t bytes) const {
  return redis_budget_bytes_ == 0 ||
         redis_bytes_ + static_cast<int64_t>(bytes) <= redis_budget_bytes_;
}

void ChunkPromoter::Offer(const Family& family, std::string name, std::string place,
                          const std::string& payload) {
  sync::MutexLock lock(mutex_);
  if (!HasRoomFor(waiting_bytes_ + payload.size()) ||
      waiting_bytes_ + payload.size() > kMaxWaitingBytes || absl::Now() < full_until_) {
    return;
  }
  waiting_bytes_ += payload.size();
  waiting_.push_back(
      {.family = family, .name = std::move(name), .place = std::move(place), .payload = payload});
  changed_.NotifyOne();
}

void ChunkPromoter::Run(const std::stop_token& stop) {
  while (true) {
    std::optional<Offered> next;
    {
      sync::MutexLock lock(mutex_);
      while (waiting_.empty() && !stop.stop_requested()) changed_.Wait(mutex_);
      if (stop.stop_requested()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    Promote(*std::move(next));
  }
}

void ChunkPromoter::Promote(Offered offered) {
  const size_t waited = offered.payload.size();
  const Family& family = offered.family;
  absl::StatusOr<redis::Reply> reply = absl::ResourceExhaustedError("Redis is at its budget");
  const bool has_room = HasRoomFor(waited);
  if (has_room) {
    reply = directory_.Eval(directory_.scripts().promote, family.Keys(),
                            {family.key_id(), offered.name, offered.place,
                             family.SealChunk(std::move(offered.payload), offered.name)},
                            absl::Now() + kPromotionTimeout);
  }
  const bool is_promoted = reply.ok() && Word(*reply) == "promoted";
  const int64_t bytes = is_promoted ? Number(*reply, 1).value_or(0) : 0;
  {
    // At once: a chunk that counted twice would keep the next one out.
    sync::MutexLock lock(mutex_);
    waiting_bytes_ -= waited;
    redis_bytes_ += bytes;
    if (has_room && absl::IsResourceExhausted(reply.status())) {
      full_until_ = absl::Now() + kFullPause;
    }
  }
  if (!is_promoted) return;
  metrics_.CountPromotedBytes(bytes);
  // A process that dies here leaves the file to the sweep.
  disk_.Remove(family.tenant(), family.name(), offered.name, offered.place);
}

}  // namespace mneme::memory
