// The model that benchmarks of this folder run, with pages for its sequences: the default one, or
// the one that $MNEME_MODEL names.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/memory/kv_pool.h"
#include "common/memory/kv_tables.h"
#include "common/model/model.h"

namespace mneme::model {

struct BenchEngine {
  std::unique_ptr<Model> model;
  std::unique_ptr<memory::KvPool> pool;  // 1 GiB
  std::unique_ptr<memory::KvTables> tables;
};

// Threads: $MNEME_THREADS, else as many as processors. Codes as ModelFiles::Open and Model::Load.
absl::StatusOr<BenchEngine> OpenBenchEngine(ComputeType compute);

// One engine for all benchmarks of the process that share it, bfloat16; null: it can't be opened.
BenchEngine* SharedBenchEngine();

}  // namespace mneme::model
