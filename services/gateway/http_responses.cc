#include "services/gateway/http_responses.h"

#include <httplib.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "services/gateway/http_answer.h"

namespace mneme::gateway {
namespace {

namespace iv1 = inference::v1;

// Sessions that were made for responses alone begin with this.
constexpr absl::string_view kOwnSession = "resp-";
constexpr absl::string_view kConversation = "conv_";
constexpr absl::string_view kItem = "msg_";
constexpr int kDefaultPage = 20;
constexpr int kMaxPage = 100;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::Status NoSuchResponse(absl::string_view id, absl::string_view field) {
  return status::WithPayload(
      status::WithPayload(absl::NotFoundError(absl::StrCat("no such response: ", id)),
                          status::kFieldPayload, field),
      status::kReasonPayload, field.empty() ? "RESPONSE_NOT_FOUND" : "PREVIOUS_RESPONSE_NOT_FOUND");
}

// A name that the same key always gives.
std::string NameOf(absl::string_view prefix, const std::string& key) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return absl::StrCat(prefix, absl::BytesToHexString(absl::string_view(
                                  reinterpret_cast<const char*>(hash.data()), 16)));
}

// Whether the session has gone on, or is going on, from another place.
bool HasMovedOn(const absl::Status& status) {
  const std::string reason = status::PayloadOf(status, status::kReasonPayload);
  return reason == "STALE_VERSION" || reason == "SESSION_BUSY";
}

Json ConversationOf(const v1::Session& session) {
  return {{"id", session.session_id()},
          {"object", "conversation"},
          {"created_at", session.created_unix_ms() / 1000},
          {"metadata", MetadataOf(session.title())}};
}

std::string ItemIdOf(const std::string& conversation, int index) {
  return absl::StrCat(kItem, conversation, "_", index);
}

Json ListOf(Json items, bool has_more) {
  Json list = {{"object", "list"}, {"has_more", has_more}};
  list["first_id"] = items.empty() ? Json() : items.front()["id"];
  list["last_id"] = items.empty() ? Json() : items.back()["id"];
  list["data"] = std::move(items);
  return list;
}

// The page that the parameters limit, after and order ask for.
absl::StatusOr<Json> PageOf(Json items, const httplib::Request& request,
                            const char* default_order) {
  int limit = kDefaultPage;
  if (request.has_param("limit") && (!absl::SimpleAtoi(request.get_param_value("limit"), &limit) ||
                                     limit < 1 || limit > kMaxPage)) {
    return status::InvalidField("limit", absl::StrCat("must lie between 1 and ", kMaxPage));
  }
  const std::string order =
      request.has_param("order") ? request.get_param_value("order") : default_order;
  if (order != "asc" && order != "desc") {
    return status::InvalidField("order", "must be asc or desc");
  }
  if (order == "desc") std::reverse(items.begin(), items.end());
  auto begin = items.begin();
  if (const std::string after = request.get_param_value("after"); !after.empty()) {
    begin = std::find_if(items.begin(), items.end(),
                         [&](const Json& item) { return item["id"] == after; });
    if (begin == items.end()) return status::InvalidField("after", "must be the id of an item");
    ++begin;
  }
  Json page = Json::array();
  for (; begin != items.end() && page.size() < static_cast<size_t>(limit); ++begin) {
    page.push_back(*begin);
  }
  return ListOf(std::move(page), begin != items.end());
}

absl::StatusOr<v1::GetSessionResponse> SessionOf(const SessionDirectory& sessions,
                                                 const std::string& id, bool with_messages,
                                                 const Caller& caller) {
  v1::GetSessionRequest get;
  get.set_session_id(id);
  get.set_with_messages(with_messages);
  return sessions.Get(get, caller);
}

}  // namespace

HttpResponses::Answer HttpResponses::Continue(const ResponseId& previous,
                                              const ResponsesRequest& request,
                                              const std::string& key, const Caller& caller) {
  v1::ChatRequest chat = request.chat;
  chat.set_session_id(previous.session_id);
  chat.set_parent_version(previous.version);
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found,
                   SessionOf(sessions_, previous.session_id, false, caller));
  if (found.session().version() < previous.version) {
    return NoSuchResponse(request.previous_response_id, "previous_response_id");
  }
  // With a key the answer may be there already, whatever came after it.
  if (found.session().version() == previous.version || !key.empty()) {
    Answer answer = core_.StartChat(chat, caller, request.instructions);
    if (answer.ok() || !HasMovedOn(answer.status())) return answer;
  }
  v1::ForkSessionRequest fork;
  fork.set_session_id(previous.session_id);
  fork.set_version(previous.version);
  fork.set_new_session_id(
      key.empty() ? absl::StrCat(kOwnSession, trace::RandomHex(24))
                  : NameOf(kOwnSession, absl::StrCat(request.previous_response_id, " ", key)));
  fork.set_request_id(key);
  const absl::Status forked = sessions_.Fork(fork, caller).status();
  if (!forked.ok() && !absl::IsAlreadyExists(forked)) return forked;
  chat.set_session_id(fork.new_session_id());
  return core_.StartChat(chat, caller, request.instructions);
}

HttpResponses::Answer HttpResponses::StartUnstored(const ResponsesRequest& request,
                                                   const Caller& caller) {
  v1::ChatRequest chat = request.chat;
  chat.clear_request_id();
  if (!request.previous_response_id.empty()) {
    const auto previous = ParseResponseId(request.previous_response_id);
    if (!previous) return NoSuchResponse(request.previous_response_id, "previous_response_id");
    // A fork that lasts a moment: the session itself may have gone on.
    v1::ForkSessionRequest fork;
    fork.set_session_id(previous->session_id);
    fork.set_version(previous->version);
    fork.set_new_session_id(absl::StrCat(kOwnSession, trace::RandomHex(24)));
    const absl::Status forked = sessions_.Fork(fork, caller).status();
    if (absl::IsNotFound(forked) || absl::IsOutOfRange(forked)) {
      return NoSuchResponse(request.previous_response_id, "previous_response_id");
    }
    RETURN_IF_ERROR(forked);
    absl::StatusOr<v1::GetSessionResponse> found =
        SessionOf(sessions_, fork.new_session_id(), true, caller);
    v1::DeleteSessionRequest remove;
    remove.set_session_id(fork.new_session_id());
    RETURN_IF_ERROR(sessions_.Delete(remove, caller).status());
    RETURN_IF_ERROR(found.status());
    auto messages = std::move(*found->mutable_messages());
    messages.MergeFrom(chat.messages());
    *chat.mutable_messages() = std::move(messages);
    if (chat.model().empty()) chat.set_model(found->session().model());
  }
  return core_.StartChat(chat, caller, request.instructions);
}

HttpResponses::Answer HttpResponses::Start(const ResponsesRequest& request, const std::string& key,
                                           const Caller& caller) {
  if (!request.store) return StartUnstored(request, caller);
  if (!request.previous_response_id.empty()) {
    const auto previous = ParseResponseId(request.previous_response_id);
    if (!previous) return NoSuchResponse(request.previous_response_id, "previous_response_id");
    Answer answer = Continue(*previous, request, key, caller);
    if (absl::IsNotFound(answer.status()) &&
        status::PayloadOf(answer.status(), status::kReasonPayload).empty()) {
      return NoSuchResponse(request.previous_response_id, "previous_response_id");
    }
    return answer;
  }
  v1::ChatRequest chat = request.chat;
  if (!request.conversation.empty()) {
    RETURN_IF_ERROR(SessionOf(sessions_, request.conversation, false, caller).status());
    chat.set_session_id(request.conversation);
  } else {
    chat.set_session_id(key.empty() ? absl::StrCat(kOwnSession, trace::RandomHex(24))
                                    : NameOf(kOwnSession, key));
  }
  return core_.StartChat(chat, caller, request.instructions);
}

void HttpResponses::Create(const httplib::Request& request, httplib::Response& response,
                           const std::shared_ptr<HttpExchange>& exchange) {
  absl::StatusOr<ResponsesRequest> parsed = ParseResponses(request.body);
  if (!parsed.ok()) return exchange->Fail(parsed.status(), response);
  const std::string key = request.get_header_value("Idempotency-Key");
  // Every turn has a request id, by which it is found again.
  parsed->chat.set_request_id(key.empty() ? absl::StrCat("response-", trace::RandomHex(24)) : key);
  ResponseFrame frame{parsed->echo, parsed->store, parsed->conversation};
  Answer answer = Start(*parsed, key, exchange->caller);
  if (parsed->stream) {
    return StreamAnswer(std::move(answer), response, exchange, [frame](HttpWrite write) {
      auto stream = std::make_unique<ResponsesStream>(frame, std::move(write));
      ResponsesStream* const raw = stream.get();
      return EventSink{std::move(stream), [raw](absl::string_view json) { raw->Fail(json); }};
    });
  }
  ResponsesObject object(std::move(frame), exchange->caller.gone);
  const absl::Status status = RunAnswer(std::move(answer), object, *exchange);
  if (!status.ok()) return exchange->Fail(status, response);
  WriteJson(object.body(), response);
}

absl::StatusOr<SessionDirectory::CommittedTurn> HttpResponses::Find(const std::string& id,
                                                                    const Caller& caller) const {
  const auto parsed = ParseResponseId(id);
  if (!parsed) return NoSuchResponse(id, "");
  absl::StatusOr<SessionDirectory::CommittedTurn> found =
      sessions_.FindTurn(parsed->session_id, parsed->version, caller);
  if (absl::IsNotFound(found.status())) return NoSuchResponse(id, "");
  return found;
}

absl::StatusOr<std::string> HttpResponses::Get(const httplib::Request& request,
                                               const Caller& caller) const {
  const std::string id = request.matches[1].str();
  ASSIGN_OR_RETURN(const SessionDirectory::CommittedTurn found, Find(id, caller));
  const v1::Session& session = found.session;
  ResponseFrame frame;
  if (found.turn.version() > 1) {
    // The first own turn of a fork follows a turn of its parent.
    const uint64_t before = found.turn.version() - 1;
    const bool in_parent =
        !session.parent_session().empty() && before <= session.parent_session_version();
    frame.echo["previous_response_id"] =
        FormatResponseId({in_parent ? session.parent_session() : session.session_id(), before});
  }
  if (absl::StartsWith(session.session_id(), kConversation)) {
    frame.conversation = session.session_id();
  }
  ResponseState state;
  state.id = id;
  state.model = session.model();
  state.created_unix_s = found.turn.committed_unix_ms() / 1000;
  if (found.turn.messages_size() > 0) {
    state.text = found.turn.messages(found.turn.messages_size() - 1).content();
  }
  state.finish_reason = found.turn.finish_reason();
  state.usage = found.turn.usage();
  return Dump(ResponseObject(frame, state));
}

absl::StatusOr<std::string> HttpResponses::GetInput(const httplib::Request& request,
                                                    const Caller& caller) const {
  const std::string id = request.matches[1].str();
  ASSIGN_OR_RETURN(const SessionDirectory::CommittedTurn found, Find(id, caller));
  Json items = Json::array();
  for (int i = 0; i + 1 < found.turn.messages_size(); ++i) {
    items.push_back(ItemOf(found.turn.messages(i), absl::StrCat(kItem, id, "_", i)));
  }
  ASSIGN_OR_RETURN(const Json page, PageOf(std::move(items), request, "desc"));
  return Dump(page);
}

absl::StatusOr<std::string> HttpResponses::Delete(const httplib::Request& request,
                                                  const Caller& caller) const {
  const std::string id = request.matches[1].str();
  ASSIGN_OR_RETURN(const SessionDirectory::CommittedTurn found, Find(id, caller));
  const v1::Session& session = found.session;
  const auto conflict = [](absl::string_view message) {
    return status::WithPayload(absl::AbortedError(message), status::kReasonPayload,
                               "RESPONSE_IN_USE");
  };
  if (!absl::StartsWith(session.session_id(), kOwnSession)) {
    return conflict("the response is part of a conversation: delete that, or rewind the session");
  }
  if (found.turn.version() != session.version()) {
    return conflict("later responses are built on this one: delete them first");
  }
  // A fork's own turns begin after those of its parent.
  const uint64_t first =
      session.parent_session().empty() ? 1 : session.parent_session_version() + 1;
  if (found.turn.version() <= first) {
    v1::DeleteSessionRequest remove;
    remove.set_session_id(session.session_id());
    RETURN_IF_ERROR(sessions_.Delete(remove, caller).status());
  } else {
    v1::RewindSessionRequest rewind;
    rewind.set_session_id(session.session_id());
    rewind.set_version(found.turn.version() - 1);
    RETURN_IF_ERROR(sessions_.Rewind(rewind, caller).status());
  }
  return Dump({{"id", id}, {"object", "response.deleted"}, {"deleted", true}});
}

absl::StatusOr<std::string> HttpResponses::CreateConversation(const httplib::Request& request,
                                                              const Caller& caller) {
  Json json = Json::object();
  if (!request.body.empty()) {
    ASSIGN_OR_RETURN(json, ParseObject(request.body));
  }
  JsonFields fields(json);
  ASSIGN_OR_RETURN(const std::string title, ReadMetadata(fields));
  google::protobuf::RepeatedPtrField<iv1::Message> messages;
  if (const Json* items = fields.Array("items")) {
    RETURN_IF_ERROR(ReadItems(*items, "items", &messages));
  }
  v1::CreateSessionRequest create;
  create.set_model(fields.String("model").value_or(""));
  RETURN_IF_ERROR(fields.status());
  const std::string key = request.get_header_value("Idempotency-Key");
  create.set_session_id(key.empty() ? absl::StrCat(kConversation, trace::RandomHex(24))
                                    : NameOf(kConversation, key));
  create.set_request_id(key);
  create.set_title(title);
  ASSIGN_OR_RETURN(const v1::CreateSessionResponse made, sessions_.Create(create, caller));
  if (!messages.empty()) {
    // With a key of its own: a repeated request adds them once.
    RETURN_IF_ERROR(
        core_.AddMessages(create.session_id(), messages, "conversation-items", caller).status());
  }
  return Dump(ConversationOf(made.session()));
}

absl::StatusOr<std::string> HttpResponses::GetConversation(const httplib::Request& request,
                                                           const Caller& caller) const {
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found,
                   SessionOf(sessions_, request.matches[1].str(), false, caller));
  return Dump(ConversationOf(found.session()));
}

absl::StatusOr<std::string> HttpResponses::UpdateConversation(const httplib::Request& request,
                                                              const Caller& caller) const {
  ASSIGN_OR_RETURN(const Json json, ParseObject(request.body));
  JsonFields fields(json);
  if (!fields.Has("metadata")) fields.Fail("metadata", "must be given");
  v1::UpdateSessionRequest update;
  update.set_session_id(request.matches[1].str());
  ASSIGN_OR_RETURN(*update.mutable_title(), ReadMetadata(fields));
  ASSIGN_OR_RETURN(const v1::UpdateSessionResponse updated, sessions_.Update(update, caller));
  return Dump(ConversationOf(updated.session()));
}

absl::StatusOr<std::string> HttpResponses::DeleteConversation(const httplib::Request& request,
                                                              const Caller& caller) const {
  v1::DeleteSessionRequest remove;
  remove.set_session_id(request.matches[1].str());
  RETURN_IF_ERROR(sessions_.Delete(remove, caller).status());
  return Dump({{"id", remove.session_id()}, {"object", "conversation.deleted"}, {"deleted", true}});
}

absl::StatusOr<std::string> HttpResponses::AddItems(const httplib::Request& request,
                                                    const Caller& caller) {
  const std::string id = request.matches[1].str();
  ASSIGN_OR_RETURN(const Json json, ParseObject(request.body));
  JsonFields fields(json);
  const Json* items = fields.Array("items");
  if (items == nullptr || items->empty()) fields.Fail("items", "must have at least one item");
  RETURN_IF_ERROR(fields.status());
  google::protobuf::RepeatedPtrField<iv1::Message> messages;
  RETURN_IF_ERROR(ReadItems(*items, "items", &messages));
  RETURN_IF_ERROR(SessionOf(sessions_, id, false, caller).status());
  ASSIGN_OR_RETURN(
      const int first,
      core_.AddMessages(id, messages, request.get_header_value("Idempotency-Key"), caller));
  Json added = Json::array();
  for (int i = 0; i < messages.size(); ++i) {
    added.push_back(ItemOf(messages[i], ItemIdOf(id, first + i)));
  }
  return Dump(ListOf(std::move(added), /*has_more=*/false));
}

absl::StatusOr<std::string> HttpResponses::ListItems(const httplib::Request& request,
                                                     const Caller& caller) const {
  const std::string id = request.matches[1].str();
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found, SessionOf(sessions_, id, true, caller));
  Json items = Json::array();
  for (int i = 0; i < found.messages_size(); ++i) {
    items.push_back(ItemOf(found.messages(i), ItemIdOf(id, i)));
  }
  ASSIGN_OR_RETURN(const Json page, PageOf(std::move(items), request, "desc"));
  return Dump(page);
}

absl::StatusOr<std::string> HttpResponses::GetItem(const httplib::Request& request,
                                                   const Caller& caller) const {
  const std::string id = request.matches[1].str();
  const std::string item_id = request.matches[2].str();
  ASSIGN_OR_RETURN(const v1::GetSessionResponse found, SessionOf(sessions_, id, true, caller));
  absl::string_view rest = item_id;
  int index = 0;
  if (absl::ConsumePrefix(&rest, absl::StrCat(kItem, id, "_")) && absl::SimpleAtoi(rest, &index) &&
      index >= 0 && index < found.messages_size()) {
    return Dump(ItemOf(found.messages(index), item_id));
  }
  return absl::NotFoundError(absl::StrCat("no such item: ", item_id));
}

void HttpResponses::Register(httplib::Server& server) {
  using Request = httplib::Request;
  using Response = httplib::Response;
  using Exchange = std::shared_ptr<HttpExchange>;
  const auto route = [this](const char* name, auto method) {
    return edge_.Route(
        name, [this, method](const Request& request, Response& response, const Exchange& exchange) {
          const absl::StatusOr<std::string> json = (this->*method)(request, exchange->caller);
          if (!json.ok()) return exchange->Fail(json.status(), response);
          WriteJson(*json, response);
        });
  };
  server.Post("/v1/responses",
              edge_.Route("/v1/responses", [this](const Request& request, Response& response,
                                                  const Exchange& exchange) {
                Create(request, response, exchange);
              }));
  constexpr char kResponse[] = "/v1/responses/([^/]+)";
  server.Get(kResponse, route("/v1/responses/{id}", &HttpResponses::Get));
  server.Delete(kResponse, route("/v1/responses/{id}", &HttpResponses::Delete));
  server.Get("/v1/responses/([^/]+)/input_items",
             route("/v1/responses/{id}/input_items", &HttpResponses::GetInput));
  server.Post("/v1/conversations", route("/v1/conversations", &HttpResponses::CreateConversation));
  constexpr char kOne[] = "/v1/conversations/([^/]+)";
  server.Get(kOne, route("/v1/conversations/{id}", &HttpResponses::GetConversation));
  server.Post(kOne, route("/v1/conversations/{id}", &HttpResponses::UpdateConversation));
  server.Delete(kOne, route("/v1/conversations/{id}", &HttpResponses::DeleteConversation));
  constexpr char kItems[] = "/v1/conversations/([^/]+)/items";
  server.Get(kItems, route("/v1/conversations/{id}/items", &HttpResponses::ListItems));
  server.Post(kItems, route("/v1/conversations/{id}/items", &HttpResponses::AddItems));
  server.Get("/v1/conversations/([^/]+)/items/([^/]+)",
             route("/v1/conversations/{id}/items/{item}", &HttpResponses::GetItem));
}

}  // namespace mneme::gateway
