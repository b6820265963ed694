// What tests of the executor share: the default model's path and prompts, a configuration for it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "mneme/executor/v1/config.pb.h"
#include "nlohmann/json.hpp"

namespace mneme::executor {

inline std::string Environment(const char* name, const std::string& otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

inline std::string DefaultModelPath() {
  return Environment("MNEME_CACHE", Environment("HOME", "") + "/.cache/mneme") +
         "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
}

inline v1::ExecutorConfig DefaultModelConfig(const std::string& compute) {
  v1::ExecutorConfig config;
  config.set_model("smollm2-135m-instruct");
  config.set_model_path(DefaultModelPath());
  config.set_compute(compute);
  config.set_device("cpu");
  config.set_kv_budget_bytes(int64_t{1} << 30);
  return config;
}

struct GoldenPrompt {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> generated_ids;
  double nll_sum = 0;
};

// What the reference implementation made of the default model; empty where the file is missing.
inline std::vector<GoldenPrompt> GoldenPrompts() {
  const std::string source = Environment("MNEME_SOURCE", ".");
  std::ifstream file(Environment("MNEME_GOLDEN", source + "/../shared/golden") +
                     "/models/smollm2-135m-instruct-q4_1.json");
  std::vector<GoldenPrompt> prompts;
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return prompts;
  for (const nlohmann::json& entry : json["generation"]) {
    prompts.push_back({entry["prompt_ids"].get<std::vector<int32_t>>(),
                       entry["generated_ids"].get<std::vector<int32_t>>(),
                       entry["prompt_nll_sum"].get<double>()});
  }
  return prompts;
}

}  // namespace mneme::executor
