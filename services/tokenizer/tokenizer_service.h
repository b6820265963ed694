// The gRPC edge of the tokenizer. Thread-safe; holds no state of its own.
#pragma once

#include <grpcpp/server_context.h>

#include "absl/status/statusor.h"
#include "common/clock/clock.h"
#include "mneme/tokenizer/v1/tokenizer.grpc.pb.h"
#include "services/tokenizer/tokenizer_metrics.h"
#include "services/tokenizer/tokenizer_registry.h"

namespace mneme::tokenizer {

class TokenizerServiceImpl final : public v1::TokenizerService::Service {
 public:
  // All three must outlive the service. `clock` is what templates print dates of.
  TokenizerServiceImpl(const TokenizerRegistry& registry, const clock::Clock& clock,
                       TokenizerMetrics& metrics)
      : registry_(registry), clock_(clock), metrics_(metrics) {}

  grpc::Status Encode(grpc::ServerContext* context, const v1::EncodeRequest* request,
                      v1::EncodeResponse* response) override;
  grpc::Status Decode(grpc::ServerContext* context, const v1::DecodeRequest* request,
                      v1::DecodeResponse* response) override;
  grpc::Status EncodeChat(grpc::ServerContext* context, const v1::EncodeChatRequest* request,
                          v1::EncodeChatResponse* response) override;
  grpc::Status Detokenize(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::DetokenizeResponse, v1::DetokenizeRequest>* stream) override;
  grpc::Status CountTokens(grpc::ServerContext* context, const v1::CountTokensRequest* request,
                           v1::CountTokensResponse* response) override;
  grpc::Status GetTokenizer(grpc::ServerContext* context, const v1::GetTokenizerRequest* request,
                            v1::GetTokenizerResponse* response) override;

 private:
  using DetokenizeStream = grpc::ServerReaderWriter<v1::DetokenizeResponse, v1::DetokenizeRequest>;

  absl::StatusOr<v1::EncodeResponse> Encode(const v1::EncodeRequest& request) const;
  absl::StatusOr<v1::DecodeResponse> Decode(const v1::DecodeRequest& request) const;
  absl::StatusOr<v1::EncodeChatResponse> EncodeChat(const v1::EncodeChatRequest& request) const;
  absl::Status Detokenize(DetokenizeStream* stream) const;
  absl::StatusOr<v1::CountTokensResponse> CountTokens(const v1::CountTokensRequest& request) const;
  absl::StatusOr<v1::GetTokenizerResponse> GetTokenizer(
      const v1::GetTokenizerRequest& request) const;

  // Runs one method's core, counts it and logs what is our own fault.
  template <typename Core>
  auto Call(absl::string_view method, const grpc::ServerContext& context, const Core& core);

  const TokenizerRegistry& registry_;
  const clock::Clock& clock_;
  TokenizerMetrics& metrics_;
};

}  // namespace mneme::tokenizer
