// The tokenizer service as the gateway uses it: encoding by call, decoding by a table that is
// fetched once per model, so that a streamed token costs no call.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/sync/mutex.h"
#include "common/text/token_table.h"
#include "common/trace/request_context.h"
#include "mneme/tokenizer/v1/tokenizer.grpc.pb.h"

namespace mneme::gateway {

// A model's vocabulary and what goes with it. Immutable.
struct Vocabulary {
  text::TokenTable table;
  text::TokenTable middle;  // for text that continues other text: no leading space is stripped
  std::string chat_template;
  std::string fingerprint;
};

// Thread-safe.
class TokenizerClient {
 public:
  explicit TokenizerClient(const std::string& address);

  // Returns the model's vocabulary, fetched at its first use and again when the service says that
  // it is another one. NOT_FOUND: no such model.
  absl::StatusOr<std::shared_ptr<const Vocabulary>> VocabularyOf(
      const std::string& model, const trace::RequestContext& request, absl::Time deadline);

  absl::StatusOr<tokenizer::v1::EncodeChatResponse> EncodeChat(
      const tokenizer::v1::EncodeChatRequest& encode, const trace::RequestContext& request,
      absl::Time deadline);

  // Encodes texts, with or without the special tokens that the model expects around a prompt.
  absl::StatusOr<std::vector<std::vector<int32_t>>> Encode(const std::string& model,
                                                           absl::Span<const std::string> texts,
                                                           bool add_special_tokens,
                                                           const trace::RequestContext& request,
                                                           absl::Time deadline);

  absl::StatusOr<int32_t> CountTokens(const std::string& model, const std::string& text,
                                      const trace::RequestContext& request, absl::Time deadline);

 private:
  struct Cached {
    std::shared_ptr<const Vocabulary> vocabulary;
    absl::Time checked;
  };

  const std::unique_ptr<tokenizer::v1::TokenizerService::Stub> stub_;
  sync::Mutex mutex_;
  std::map<std::string, Cached> cache_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace mneme::gateway
