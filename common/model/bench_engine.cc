#include "common/model/bench_engine.h"

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include "common/status/status_macros.h"
#include "common/weights/model_files.h"

namespace mneme::model {
namespace {

constexpr int64_t kPoolBytes = int64_t{1} << 30;

std::string Environment(const char* name, const std::string& missing) {
  const char* value = std::getenv(name);
  return value == nullptr ? missing : value;
}

}  // namespace

absl::StatusOr<BenchEngine> OpenBenchEngine(ComputeType compute) {
  const std::string cache = Environment("MNEME_CACHE", Environment("HOME", "/") + "/.cache/mneme");
  const std::string path = Environment(
      "MNEME_MODEL", cache + "/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
  ASSIGN_OR_RETURN(auto files, weights::ModelFiles::Open(path));
  BenchEngine engine;
  ASSIGN_OR_RETURN(
      engine.model,
      Model::Load(std::shared_ptr(std::move(files)),
                  {.compute = compute,
                   .num_threads = std::atoi(Environment("MNEME_THREADS", "0").c_str())}));
  ASSIGN_OR_RETURN(engine.pool, memory::KvPool::Create(engine.model->PoolOptions(kPoolBytes)));
  ASSIGN_OR_RETURN(engine.tables,
                   memory::KvTables::Create(engine.model->kv_shape(), engine.model->device()));
  return engine;
}

BenchEngine* SharedBenchEngine() {
  static BenchEngine* const shared = []() -> BenchEngine* {
    absl::StatusOr<BenchEngine> opened = OpenBenchEngine(ComputeType::kBFloat16);
    return opened.ok() ? new BenchEngine(*std::move(opened)) : nullptr;
  }();
  return shared;
}

}  // namespace mneme::model
