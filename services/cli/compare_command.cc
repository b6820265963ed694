// `mneme compare`: what memory policies cost and what they lose, on a text, side by side.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status/status_macros.h"
#include "mneme/gateway/v1/chat.grpc.pb.h"
#include "mneme/gateway/v1/model.grpc.pb.h"
#include "services/cli/background_up.h"
#include "services/cli/commands.h"
#include "services/cli/compare_plan.h"
#include "services/cli/console.h"
#include "services/cli/data_folder.h"
#include "services/cli/interrupt.h"
#include "services/cli/server_connection.h"

namespace mneme::cli {
namespace {

namespace gw = gateway::v1;

constexpr int kDefaultHistory = 1536;
constexpr int kDefaultTarget = 512;
constexpr int kDefaultWindows = 8;
constexpr int kDefaultWritten = 16;
// Of text in one call to the tokenizer; texts are cut between words.
constexpr size_t kPieceBytes = size_t{256} << 10;

struct CompareFlags {
  ServerOptions server;
  std::string model;
  std::string text_file;
  std::string policies = "truncate,window,l2norm,h2o,snapkv";
  std::string budgets = "1/2,1/4,1/8";
  std::optional<int> history;
  std::optional<int> target;
  std::optional<int> windows;
  std::optional<int> write;
  bool up = false;
  bool json = false;
};

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file || text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text must name a file with text that can be read: \"", path, "\""));
  }
  return text;
}

class Comparison {
 public:
  Comparison(const ServerConnection& server, const Interrupt& interrupt, std::string model)
      : server_(server), interrupt_(interrupt), model_(std::move(model)) {}

  absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& text, bool add_special_tokens) {
    const auto stub = gw::ModelService::NewStub(server_.channel());
    gw::TokenizeRequest request;
    request.set_model(model_);
    request.set_text(text);
    request.set_add_special_tokens(add_special_tokens);
    gw::TokenizeResponse response;
    grpc::ClientContext context;
    server_.Prepare(absl::Minutes(1), &context);
    context.set_wait_for_ready(true);
    const grpc::Status status = stub->Tokenize(&context, request, &response);
    if (!status.ok()) return server_.Explain(status);
    model_ = response.model();
    return std::vector<int32_t>(response.token_ids().begin(), response.token_ids().end());
  }

  // What the model expects before every text, and as many of the text's tokens as are needed.
  absl::Status ReadTokens(const std::string& text) {
    ASSIGN_OR_RETURN(prefix_, Tokenize("", /*add_special_tokens=*/true));
    for (size_t begin = 0; begin < text.size();) {
      size_t end = std::min(text.size(), begin + kPieceBytes);
      const size_t space = text.find_last_of(" \n", end - 1);
      if (end < text.size() && space != std::string::npos && space > begin) end = space;
      ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                       Tokenize(text.substr(begin, end - begin), /*add_special_tokens=*/false));
      tokens_.insert(tokens_.end(), ids.begin(), ids.end());
      begin = end;
    }
    return absl::OkStatus();
  }

  size_t num_tokens() const { return tokens_.size(); }
  const std::string& model() const { return model_; }

  // One window of one contender.
  absl::Status Run(const ComparePlan& plan, const Contender& contender, size_t start,
                   int num_written, CompareResult* result) {
    const int64_t begin = static_cast<int64_t>(start) + plan.history;
    const int64_t end = begin + plan.target;
    for (int64_t block = begin; block < end; block += contender.block_tokens) {
      RETURN_IF_ERROR(Predict(contender, block, std::min(block + contender.block_tokens, end),
                              num_written, result));
    }
    return absl::OkStatus();
  }

 private:
  // Reads the history before token `block` and scores the tokens from there to `end`.
  absl::Status Predict(const Contender& contender, int64_t block, int64_t end, int num_written,
                       CompareResult* result) {
    gw::CompleteRequest request;
    request.set_model(model_);
    request.mutable_prompt_ids()->Assign(prefix_.begin(), prefix_.end());
    request.mutable_prompt_ids()->Add(tokens_.begin() + block - contender.history_tokens,
                                      tokens_.begin() + end);
    *request.mutable_memory_policy() = contender.memory_policy;
    request.set_echo(true);
    request.mutable_sampling()->set_prompt_logprobs(0);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    request.mutable_sampling()->set_max_tokens(num_written + 1);
    const auto stub = gw::ChatService::NewStub(server_.channel());
    grpc::ClientContext context;
    server_.Prepare(absl::InfiniteDuration(), &context);
    std::atomic<bool> interrupted = false;
    const Interrupt::Watch watch(interrupt_, [&] {
      interrupted = true;
      context.TryCancel();
    });
    const auto stream = stub->Complete(&context, request);
    gw::CompleteResponse response;
    std::vector<float> logprobs;
    inference::v1::MemoryReceipt receipt;
    while (stream->Read(&response)) {
      for (const gw::TextLogprob& token : response.event().logprobs().tokens()) {
        logprobs.push_back(token.logprob());
      }
      if (response.event().has_receipt()) receipt = response.event().receipt();
    }
    const grpc::Status status = stream->Finish();
    if (interrupted) return absl::CancelledError("stopped");
    if (!status.ok()) return server_.Explain(status);
    // The first token of all has no probability.
    if (logprobs.size() + 1 != static_cast<size_t>(request.prompt_ids_size())) {
      return absl::InternalError(absl::StrCat("the server told ", logprobs.size(),
                                              " log-probabilities for a prompt of ",
                                              request.prompt_ids_size(), " tokens"));
    }
    for (auto scored = logprobs.end() - (end - block); scored != logprobs.end(); ++scored) {
      result->sum_logprob += *scored;
    }
    result->num_scored += end - block;
    result->num_read += receipt.prefilled_tokens();
    result->read_ms += receipt.ms().at("prefill");
    result->num_written += num_written;
    result->write_ms += receipt.ms().at("decode");
    result->resident_bytes = std::max(result->resident_bytes, receipt.kv_bytes_resident());
    result->peak_bytes = std::max(result->peak_bytes, receipt.kv_bytes_peak());
    return absl::OkStatus();
  }

  const ServerConnection& server_;
  const Interrupt& interrupt_;
  std::string model_;
  std::vector<int32_t> prefix_;
  std::vector<int32_t> tokens_;
};

absl::Status Compare(CompareFlags& flags, const Interrupt& interrupt) {
  const int64_t history = flags.history.value_or(kDefaultHistory);
  const int64_t target = flags.target.value_or(kDefaultTarget);
  const int num_written = flags.write.value_or(kDefaultWritten);
  if (num_written < 1) return absl::InvalidArgumentError("--write must be at least 1");
  ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text_file));
  ASSIGN_OR_RETURN(
      const ComparePlan plan,
      MakeComparePlan(absl::StrSplit(flags.policies, ',', absl::SkipEmpty()),
                      absl::StrSplit(flags.budgets, ',', absl::SkipEmpty()), history, target));
  const DataFolder folder(flags.server.data);
  std::optional<BackgroundUp> up;
  if (flags.up && flags.server.server.empty() && folder.RunningPid() == 0) {
    std::vector<std::string> arguments = {"--data", folder.path(), "--http-port",
                                          "0",      "--grpc-port", "0"};
    if (!flags.model.empty()) arguments.insert(arguments.end(), {"--model", flags.model});
    ASSIGN_OR_RETURN(BackgroundUp started, BackgroundUp::Start(arguments, interrupt));
    up.emplace(std::move(started));
    flags.model = up->state().model();
  }
  ASSIGN_OR_RETURN(const ServerConnection server, ServerConnection::Open(flags.server));
  Comparison comparison(server, interrupt, flags.model);
  RETURN_IF_ERROR(comparison.ReadTokens(text));
  ASSIGN_OR_RETURN(const std::vector<size_t> starts,
                   WindowStarts(comparison.num_tokens(), history + target,
                                flags.windows.value_or(kDefaultWindows)));
  std::vector<CompareResult> results(plan.contenders.size());
  // Window by window, so that a machine that slows down slows all contenders down.
  for (size_t i = 0; i < starts.size(); ++i) {
    for (size_t k = 0; k < results.size(); ++k) {
      RETURN_IF_ERROR(
          comparison.Run(plan, plan.contenders[k], starts[i], num_written, &results[k]));
    }
    if (isatty(STDERR_FILENO) != 0) {
      PrintErrorLine(absl::StrCat("window ", i + 1, " of ", starts.size()));
    }
  }
  if (flags.json) {
    for (size_t k = 0; k < results.size(); ++k) {
      PrintLine(CompareJson(plan.contenders[k], results[k]));
    }
    return absl::OkStatus();
  }
  PrintLine(absl::StrCat("model ", comparison.model(), ", ", starts.size(), " windows of ", history,
                         " + ", target, " tokens of ", flags.text_file, "\n"));
  PrintLine(Table(CompareRows(plan, results)));
  return absl::OkStatus();
}

}  // namespace

int CompareCommand(const std::vector<std::string>& words) {
  CompareFlags flags;
  Arguments arguments(
      "mneme compare",
      "Shows what memory policies cost and lose on a text: each reads windows of it with a budget "
      "of entries and then predicts what comes next. `truncate` is the full cache of a context "
      "that is cut off: when the budget is full, the older half goes and the rest is read again.");
  arguments.Option("text", "FILE", &flags.text_file, "the text, UTF-8 (needed)");
  arguments.Option("model", "M", &flags.model, "the model (default: the server's)");
  arguments.Option("policies", "LIST", &flags.policies,
                   absl::StrCat("with commas between (default ", flags.policies, ")"));
  arguments.Option(
      "budgets", "LIST", &flags.budgets,
      absl::StrCat("shares of the history that may be kept (default ", flags.budgets, ")"));
  arguments.Option("history", "N", &flags.history,
                   absl::StrCat("tokens read before (default ", kDefaultHistory, ")"));
  arguments.Option("target", "N", &flags.target,
                   absl::StrCat("tokens predicted (default ", kDefaultTarget, ")"));
  arguments.Option("windows", "N", &flags.windows,
                   absl::StrCat("places in the text (default ", kDefaultWindows, ")"));
  arguments.Option(
      "write", "N", &flags.write,
      absl::StrCat("tokens written to measure the time of one (default ", kDefaultWritten, ")"));
  arguments.Flag("up", &flags.up, "starts a server if none runs, and stops it at the end");
  arguments.Flag("json", &flags.json, "prints one line of JSON per contender");
  AddServerOptions(arguments, &flags.server);
  if (const std::optional<int> code = ParseOrExit(arguments, words)) return *code;
  // Before any thread, so that all of them leave Ctrl-C to it.
  const Interrupt interrupt;
  const absl::Status status = Compare(flags, interrupt);
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace mneme::cli
