// JSON files of a golden set that hold scores of metrics: an object whose "cases" each have a
// "score". ctest makes one test of each file and names it in MNEME_STEM; without that a test takes
// all that are there.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/golden/golden_folder.h"

namespace mneme::testing {

// Fails the running test and returns null where the file holds no JSON.
inline nlohmann::json ReadGoldenJson(const std::filesystem::path& path) {
  std::ifstream file(path);
  nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_discarded()) return json;
  ADD_FAILURE() << "not JSON: " << path.filename();
  return nullptr;
}

// The field as text: a number is what JSON writes.
inline std::string GoldenText(const nlohmann::json& golden, const char* field) {
  const nlohmann::json& value = golden.at(field);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// The field as texts; a missing one and null are none.
inline std::vector<std::string> GoldenTexts(const nlohmann::json& golden, const char* field) {
  const auto found = golden.find(field);
  if (found == golden.end() || found->is_null()) return {};
  return found->get<std::vector<std::string>>();
}

// Calls `check` with every case of every file of the set whose first case has `field`, which tells
// the format. Fails the running test where there is no case.
inline void ForEachMetricCase(const std::string& set, const std::string& field,
                              const std::function<void(const nlohmann::json&)>& check) {
  const std::string stem = EnvironmentOr("MNEME_STEM", "");
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator it(GoldenFolder(set), error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".json" && (stem.empty() || it->path().stem() == stem)) {
      paths.push_back(it->path());
    }
  }
  std::sort(paths.begin(), paths.end());
  size_t num_cases = 0;
  for (const std::filesystem::path& path : paths) {
    const nlohmann::json json = ReadGoldenJson(path);
    const nlohmann::json cases = json.is_object() ? json.value("cases", nlohmann::json()) : json;
    if (!cases.is_array() || cases.empty() || !cases[0].is_object() || !cases[0].contains(field)) {
      continue;
    }
    for (const nlohmann::json& golden : cases) {
      SCOPED_TRACE(path.filename().string() + ", case " + golden.dump());
      check(golden);
      ++num_cases;
    }
  }
  EXPECT_GT(num_cases, 0u) << "no file has such cases, nothing was compared";
}

}  // namespace mneme::testing
