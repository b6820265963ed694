// One golden file of NAMM, by its kind. MNEME_STEM names the file; ctest makes one test of each
// (discover.cmake.in).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/golden/namm/golden_file.h"
#include "tests/golden/namm/namm_cases.h"

namespace mneme::testing {
namespace {

class NammGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(NammGoldenTest, EqualsTheReference) {
  const GoldenFile golden(NammGoldenFolder() + "/" + GetParam() + ".safetensors");
  if (HasFailure()) return;
  const std::map<std::string, void (*)(const GoldenFile&)> checks = {
      {"bam", CheckBam},
      {"stft_ema", CheckSpectrogram},
      {"norm_stats", CheckStatistics},
      {"recency_embedding", CheckRecency},
      {"selection", CheckSelection},
      {"policy", CheckPolicy},
      {"evo_checkpoint", CheckCheckpoint},
      {"derived_baselines", CheckBaselines},
      {"e2e_llama", CheckEndToEnd},
      {"cma_constants", CheckEvolutionConstants},
      {"cma_run", CheckEvolutionRun},
      {"open_namm", CheckOpenNamm},
      {"open_namm_transformer", CheckOpenNammTransformer},
  };
  const auto check = checks.find(golden.kind());
  ASSERT_TRUE(check != checks.end()) << "unknown kind: " << golden.kind();
  check->second(golden);
}

std::vector<std::string> Stems() {
  const char* const stem = std::getenv("MNEME_STEM");
  if (stem != nullptr) return {stem};
  std::vector<std::string> stems;
  std::error_code error;
  for (std::filesystem::directory_iterator it(NammGoldenFolder(), error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".safetensors") stems.push_back(it->path().stem().string());
  }
  std::sort(stems.begin(), stems.end());
  return stems;
}

std::string CaseName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (!isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Files, NammGoldenTest, ::testing::ValuesIn(Stems()), CaseName);

}  // namespace
}  // namespace mneme::testing
