#include "common/redis/directory.h"

#include <algorithm>
#include <chrono>

#include "absl/time/clock.h"

namespace mneme::redis {
namespace {

constexpr absl::Duration kRefreshInterval = absl::Milliseconds(50);

}  // namespace

absl::Status RefreshGate::Pass(absl::Time limit, const std::function<absl::Status()>& refresh) {
  {
    sync::MutexLock lock(mutex_);
    if (is_under_way_) {
      while (is_under_way_) {
        const absl::Duration left = limit - absl::Now();
        if (left <= absl::ZeroDuration()) {
          return absl::UnavailableError("Redis did not say in time which server is the master");
        }
        changed_.WaitUntil(mutex_,
                           std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(left));
      }
      return result_;
    }
    if (absl::Now() < ended_ + kRefreshInterval) return result_;
    is_under_way_ = true;
  }
  absl::Status result = refresh();
  sync::MutexLock lock(mutex_);
  is_under_way_ = false;
  ended_ = absl::Now();
  result_ = result;
  changed_.NotifyAll();
  return result;
}

Options OptionsAt(const Options& options, const std::string& address) {
  Options one = options;
  one.mode = Mode::kSingle;
  one.address = address;
  one.addresses.clear();
  return one;
}

std::vector<std::string> AddressesOf(const Options& options) {
  std::vector<std::string> addresses;
  if (!options.address.empty()) addresses.push_back(options.address);
  for (const std::string& address : options.addresses) {
    if (std::find(addresses.begin(), addresses.end(), address) == addresses.end()) {
      addresses.push_back(address);
    }
  }
  return addresses;
}

}  // namespace mneme::redis
