#include "services/executor/logit_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mneme::executor {
namespace {

// Four lanes: what every processor has, and what the compiler widens where it may.
using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline Floats LoadFloats(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// e^x for x <= 0 with a relative error under 2e-7; 0 for x < -87 and for NaN. Range reduction by
// ln 2 in two parts, then the Taylor polynomial of degree 7 on [-ln2/2, ln2/2].
inline Floats Exp(Floats x) {
  const Ints in_range = x >= -87.0F;
  const Floats clamped = in_range ? x : Floats{};
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (clamped * 1.44269504F + kRound) - kRound;
  const Floats r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  Floats p = r * (1.0F / 5040) + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof(power));
  return in_range ? p * power : Floats{};
}

float BlockMax(const float* logits, int64_t size) {
  Floats best[4];
  for (Floats& lane : best) lane = Floats{} + kMinusInfinity;
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) {
      const Floats x = LoadFloats(logits + i + j * kLanes);
      best[j] = x > best[j] ? x : best[j];
    }
  }
  float max = kMinusInfinity;
  for (; i < size; ++i) max = logits[i] > max ? logits[i] : max;
  for (const Floats& lane : best) {
    for (int64_t j = 0; j < kLanes; ++j) max = lane[j] > max ? lane[j] : max;
  }
  return max;
}

// One block of ExpWeights. `weights` may be null.
double BlockWeights(const float* logits, int64_t size, float max, float scale, float* weights) {
  Floats sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    for (int64_t j = 0; j < 2; ++j) {
      const Floats weight = Exp((LoadFloats(logits + i + j * kLanes) - max) * scale);
      sums[j] += weight;
      if (weights != nullptr) std::memcpy(weights + i + j * kLanes, &weight, sizeof(weight));
    }
  }
  double sum = 0;
  for (; i < size; ++i) {
    const Floats weight = Exp((Floats{logits[i], 0, 0, 0} - max) * scale);
    sum += weight[0];
    if (weights != nullptr) weights[i] = weight[0];
  }
  for (const Floats& lane : sums) {
    for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
  }
  return sum;
}

void SelectFrom(std::vector<Candidate>* candidates, int64_t k) {
  if (k < static_cast<int64_t>(candidates->size())) {
    std::nth_element(candidates->begin(), candidates->begin() + k, candidates->end(), ComesBefore);
    candidates->resize(k);
  }
  std::sort(candidates->begin(), candidates->end(), ComesBefore);
}

}  // namespace

float MaxLogit(absl::Span<const float> logits) { return BlockMax(logits.data(), logits.size()); }

int32_t ArgMax(absl::Span<const float> logits) {
  const float max = MaxLogit(logits);
  if (!std::isfinite(max)) return -1;
  constexpr int64_t kBlock = 64;
  const int64_t size = logits.size();
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    Ints found = {};
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      found |= LoadFloats(logits.data() + i + j) == max;
    }
    if ((found[0] | found[1] | found[2] | found[3]) != 0) break;
  }
  while (logits[i] != max) ++i;
  return static_cast<int32_t>(i);
}

double ExpWeights(absl::Span<const float> logits, float max, float scale, absl::Span<float> weights,
                  std::vector<double>* block_sums) {
  const int64_t size = logits.size();
  if (block_sums != nullptr) block_sums->clear();
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kWeightBlock) {
    const double sum = BlockWeights(logits.data() + begin, std::min(kWeightBlock, size - begin),
                                    max, scale, weights.data() + begin);
    if (block_sums != nullptr) block_sums->push_back(sum);
    total += sum;
  }
  return total;
}

double GatherAtLeast(absl::Span<const float> weights, float least, std::vector<Candidate>* found) {
  constexpr int64_t kBlock = 16;
  const int64_t size = weights.size();
  double sum = 0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(size, begin + kBlock);
    if (begin + kBlock <= size) {
      Ints any = {};
      for (int64_t i = begin; i < end; i += kLanes) any |= LoadFloats(weights.data() + i) >= least;
      if ((any[0] | any[1] | any[2] | any[3]) == 0) continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (!(weights[i] >= least)) continue;
      found->push_back({weights[i], static_cast<int32_t>(i)});
      sum += weights[i];
    }
  }
  return sum;
}

double LogSumExp(absl::Span<const float> logits) {
  const float max = MaxLogit(logits);
  if (!std::isfinite(max)) return max;
  const int64_t size = logits.size();
  double total = 0;
  for (int64_t begin = 0; begin < size; begin += kWeightBlock) {
    total += BlockWeights(logits.data() + begin, std::min(kWeightBlock, size - begin), max, 1.0F,
                          nullptr);
  }
  return max + std::log(total);
}

void SelectTop(absl::Span<const float> logits, int64_t k, std::vector<Candidate>* top) {
  constexpr int64_t kBlock = 64;
  const int64_t size = logits.size();
  const int64_t num_blocks = (size + kBlock - 1) / kBlock;
  top->clear();
  if (k <= 0) return;
  if (k > num_blocks / 2) {
    for (int64_t i = 0; i < size; ++i) {
      top->push_back(
          {logits[i] == logits[i] ? logits[i] : kMinusInfinity, static_cast<int32_t>(i)});
    }
    SelectFrom(top, k);
    return;
  }
  // At least k logits are as large as the k-th largest of the blocks' maxima, so only blocks with
  // such a maximum can hold one of the first k.
  std::vector<float> maxima(num_blocks);
  for (int64_t block = 0; block < num_blocks; ++block) {
    maxima[block] =
        BlockMax(logits.data() + block * kBlock, std::min(kBlock, size - block * kBlock));
  }
  std::vector<float> sorted = maxima;
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
  const float bound = sorted[k - 1];
  for (int64_t block = 0; block < num_blocks; ++block) {
    if (maxima[block] < bound) continue;
    for (int64_t i = block * kBlock; i < std::min(size, (block + 1) * kBlock); ++i) {
      if (logits[i] >= bound) top->push_back({logits[i], static_cast<int32_t>(i)});
    }
  }
  SelectFrom(top, k);
}

int32_t RankOf(absl::Span<const float> logits, int32_t id) {
  const float value = logits[id];
  int32_t rank = 1;
  for (int64_t i = 0; i < id; ++i) rank += logits[i] >= value ? 1 : 0;
  for (int64_t i = id + 1; i < static_cast<int64_t>(logits.size()); ++i) {
    rank += logits[i] > value ? 1 : 0;
  }
  return rank;
}

}  // namespace mneme::executor
