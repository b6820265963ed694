// The gRPC edge of the executor: checks requests, hands them to the engine, and writes what comes
// back. A slow reader blocks only its own call; the engine pauses that answer.
#pragma once

#include <atomic>
#include <functional>

#include "absl/status/statusor.h"
#include "mneme/executor/v1/executor.grpc.pb.h"
#include "services/executor/engine.h"

namespace mneme::executor {

// Thread-safe.
class ExecutorServiceImpl final : public v1::ExecutorService::Service {
 public:
  // Serves `engine` from now on; before, every method answers UNAVAILABLE. `engine` must outlive
  // the last call. `description` is what GetModel answers.
  void SetEngine(Engine* engine, v1::GetModelResponse description);

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;
  grpc::Status Estimate(grpc::ServerContext* context, const v1::EstimateRequest* request,
                        v1::EstimateResponse* response) override;
  grpc::Status FinishGeneration(grpc::ServerContext* context,
                                const v1::FinishGenerationRequest* request,
                                v1::FinishGenerationResponse* response) override;
  grpc::Status ForgetMemory(grpc::ServerContext* context, const v1::ForgetMemoryRequest* request,
                            v1::ForgetMemoryResponse* response) override;
  grpc::Status GetLoad(grpc::ServerContext* context, const v1::GetLoadRequest* request,
                       v1::GetLoadResponse* response) override;

 private:
  absl::StatusOr<Engine*> LoadedEngine() const;
  absl::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest& request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) const;
  absl::StatusOr<v1::EstimateResponse> Estimate(const v1::EstimateRequest& request) const;
  absl::StatusOr<v1::ScoreResponse> Score(grpc::ServerContext* context,
                                          const v1::ScoreRequest& request) const;

  std::atomic<Engine*> engine_ = nullptr;  // set last
  v1::GetModelResponse description_;
};

}  // namespace mneme::executor
