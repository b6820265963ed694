#include "services/cli/chat_client.h"

#include <poll.h>

#include <algorithm>
#include <atomic>

#include "absl/time/clock.h"
#include "common/trace/request_context.h"

namespace mneme::cli {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
constexpr absl::Duration kLongestPause = absl::Seconds(1);

}  // namespace

grpc::Status ChatClient::AskOnce(const gateway::v1::ChatRequest& request, absl::Time begin,
                                 const std::function<void(absl::string_view)>& on_text,
                                 ChatAnswer* answer) {
  grpc::ClientContext context;
  server_.Prepare(absl::InfiniteDuration(), &context);
  std::atomic<bool> interrupted = false;
  const Interrupt::Watch watch(interrupt_, [&] {
    interrupted = true;
    context.TryCancel();
  });
  const auto stream = stub_->Chat(&context, request);
  gateway::v1::ChatResponse event;
  absl::Time first;
  absl::Time last;
  while (stream->Read(&event)) {
    switch (event.event_case()) {
      case gateway::v1::ChatResponse::kStarted:
        answer->model = event.started().model();
        break;
      case gateway::v1::ChatResponse::kTextDelta:
        last = absl::Now();
        if (answer->text.empty()) first = last;
        answer->text += event.text_delta();
        on_text(event.text_delta());
        break;
      case gateway::v1::ChatResponse::kFinishReason:
        answer->finish_reason = event.finish_reason();
        break;
      case gateway::v1::ChatResponse::kUsage:
        answer->usage = event.usage();
        break;
      case gateway::v1::ChatResponse::kReceipt:
        answer->receipt = event.receipt();
        answer->has_receipt = true;
        break;
      case gateway::v1::ChatResponse::kDone:
        answer->session_id = event.done().session_id();
        answer->version = event.done().version();
        break;
      default:
        break;  // an event of a newer server, or one that is not shown
    }
  }
  const grpc::Status status = stream->Finish();
  answer->total = absl::Now() - begin;
  if (!answer->text.empty()) {
    answer->first_token = first - begin;
    const double seconds = absl::ToDoubleSeconds(last - first);
    const int tokens = answer->usage.completion_tokens();
    if (tokens > 1 && seconds > 0) answer->tokens_per_second = (tokens - 1) / seconds;
  }
  if (interrupted) {
    answer->interrupted = true;
    return grpc::Status::OK;
  }
  return status;
}

absl::StatusOr<ChatAnswer> ChatClient::Ask(gateway::v1::ChatRequest request,
                                           absl::Duration patience,
                                           const std::function<void(absl::string_view)>& on_text) {
  if (request.request_id().empty()) request.set_request_id(trace::RandomHex(16));
  request.set_resumable(false);  // Ctrl-C ends the call, and with it the answer
  const absl::Time begin = absl::Now();
  interrupt_.Take();  // one that came before is not meant for this answer
  absl::Duration pause = kFirstPause;
  while (true) {
    ChatAnswer answer;
    const grpc::Status status = AskOnce(request, begin, on_text, &answer);
    if (status.ok()) return answer;
    const bool again = status.error_code() == grpc::StatusCode::UNAVAILABLE &&
                       answer.text.empty() && absl::Now() - begin + pause < patience;
    if (!again) return server_.Explain(status);
    pollfd file = {interrupt_.fd(), POLLIN, 0};
    poll(&file, 1, static_cast<int>(absl::ToInt64Milliseconds(pause)));
    if (interrupt_.Take()) {
      answer.interrupted = true;
      return answer;
    }
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace mneme::cli
