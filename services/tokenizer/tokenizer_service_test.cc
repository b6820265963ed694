#include "services/tokenizer/tokenizer_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/clock/fake_clock.h"
#include "common/rpc/server.h"
#include "common/text/byte_level.h"
#include "common/text/sentencepiece_model.h"
#include "services/tokenizer/gguf_tokenizer.h"

namespace mneme::tokenizer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr char kTemplate[] =
    "{% for m in messages %}{% if m.role == 'wizard' %}"
    "{{ raise_exception('No wizards: \"' + m.role + '\"') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

constexpr int32_t kStart = 0;
constexpr int32_t kEnd = 1;

// Bytes and two special tokens: the id of a byte is the byte + 2.
text::GgufVocabulary Bytes() {
  text::GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "qwen2";
  vocabulary.tokens = {"<|im_start|>", "<|im_end|>"};
  vocabulary.token_types.assign(2, static_cast<int32_t>(text::PieceKind::kControl));
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(text::ToByteLevel(std::string(1, static_cast<char>(byte))));
    vocabulary.token_types.push_back(static_cast<int32_t>(text::PieceKind::kNormal));
  }
  vocabulary.bos_token_id = kStart;
  vocabulary.eos_token_id = kEnd;
  vocabulary.chat_template = kTemplate;
  return vocabulary;
}

std::vector<int32_t> IdsOf(absl::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c) + 2);
  return ids;
}

class TokenizerServiceTest : public ::testing::Test {
 protected:
  TokenizerServiceTest() : metrics_(metrics_registry_), service_(registry_, clock_, metrics_) {
    text::GgufVocabulary vocabulary = Bytes();
    EXPECT_TRUE(registry_.Add("bytes", text::Tokenizer::FromGguf(vocabulary).value()).ok());
    vocabulary.chat_template.clear();
    vocabulary.add_bos_token = true;
    EXPECT_TRUE(registry_.Add("plain", text::Tokenizer::FromGguf(vocabulary).value()).ok());
    server_ = rpc::Server::Start({}, {&service_}).value();
    stub_ = v1::TokenizerService::NewStub(server_->InProcessChannel());
  }

  ~TokenizerServiceTest() override { server_->Shutdown(absl::Seconds(1)); }

  template <typename Request, typename Response>
  grpc::Status Call(grpc::Status (v1::TokenizerService::Stub::*method)(grpc::ClientContext*,
                                                                       const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    return ((*stub_).*method)(&context, request, response);
  }

  v1::EncodeChatRequest Chat(const std::string& role = "user", const std::string& content = "Hi") {
    v1::EncodeChatRequest request;
    request.set_model("bytes");
    auto* message = request.add_messages();
    message->set_role(role);
    message->set_content(content);
    request.set_add_generation_prompt(true);
    request.set_with_text(true);
    return request;
  }

  TokenizerRegistry registry_;
  clock::FakeClock clock_{absl::FromUnixSeconds(1732147205)};
  metrics::Registry metrics_registry_;
  TokenizerMetrics metrics_;
  TokenizerServiceImpl service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::TokenizerService::Stub> stub_;
};

TEST_F(TokenizerServiceTest, EncodesSeveralTextsInOrder) {
  v1::EncodeRequest request;
  request.set_model("plain");
  for (const char* text : {"ab", "", "<|im_end|>"}) request.add_texts(text);
  request.set_add_special_tokens(true);
  v1::EncodeResponse response;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::Encode, request, &response).ok());
  ASSERT_THAT(response.encodings(), SizeIs(3));
  EXPECT_THAT(response.encodings(0).ids(), ElementsAre(kStart, 'a' + 2, 'b' + 2));
  EXPECT_THAT(response.encodings(1).ids(), ElementsAre(kStart));
  EXPECT_THAT(response.encodings(2).ids(), ElementsAre(kStart, kEnd));
  request.set_plain_text(true);
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::Encode, request, &response).ok());
  EXPECT_THAT(response.encodings(2).ids(), SizeIs(11));
}

TEST_F(TokenizerServiceTest, UnknownModelIsNotFoundInEveryMethod) {
  v1::EncodeResponse encode;
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::Encode, v1::EncodeRequest(), &encode).error_code(),
            grpc::StatusCode::NOT_FOUND);
  v1::DecodeResponse decode;
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::Decode, v1::DecodeRequest(), &decode).error_code(),
            grpc::StatusCode::NOT_FOUND);
  v1::EncodeChatResponse chat;
  EXPECT_EQ(
      Call(&v1::TokenizerService::Stub::EncodeChat, v1::EncodeChatRequest(), &chat).error_code(),
      grpc::StatusCode::NOT_FOUND);
  v1::CountTokensResponse count;
  EXPECT_EQ(
      Call(&v1::TokenizerService::Stub::CountTokens, v1::CountTokensRequest(), &count).error_code(),
      grpc::StatusCode::NOT_FOUND);
  v1::GetTokenizerRequest get;
  get.set_model("nobody");
  v1::GetTokenizerResponse tokenizer;
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::GetTokenizer, get, &tokenizer).error_code(),
            grpc::StatusCode::NOT_FOUND);
  grpc::ClientContext context;
  auto stream = stub_->Detokenize(&context);
  stream->Write(v1::DetokenizeRequest());
  stream->WritesDone();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(TokenizerServiceTest, TooManyOrTooLargeTextsAreRefused) {
  v1::EncodeRequest request;
  request.set_model("bytes");
  for (int index = 0; index <= 1024; ++index) request.add_texts("a");
  v1::EncodeResponse response;
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::Encode, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.clear_texts();
  request.add_texts(std::string((16 << 20) + 1, 'a'));
  const grpc::Status status = Call(&v1::TokenizerService::Stub::Encode, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("16777217"));
}

TEST_F(TokenizerServiceTest, DecodesSequencesAndRefusesForeignIds) {
  v1::DecodeRequest request;
  request.set_model("bytes");
  for (const int32_t id : IdsOf("h\xc3\xa9")) request.add_sequences()->add_ids(id);
  auto* whole = request.add_sequences();
  for (const int32_t id : IdsOf("h\xc3\xa9")) whole->add_ids(id);
  whole->add_ids(kEnd);
  request.set_skip_special_tokens(true);
  v1::DecodeResponse response;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::Decode, request, &response).ok());
  EXPECT_THAT(response.texts(), ElementsAre("h", "\xef\xbf\xbd", "\xef\xbf\xbd", "hé"));
  whole->add_ids(258);
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::Decode, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TokenizerServiceTest, ChatBecomesTheTemplatesPrompt) {
  v1::EncodeChatRequest request = Chat();
  request.set_tools_json(R"([{"type":"function"}])");
  v1::EncodeChatResponse response;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, request, &response).ok());
  EXPECT_EQ(response.text(),
            "<|im_start|>user\nHi<|im_end|>\n[{\"type\": \"function\"}]<|im_start|>assistant\n");
  EXPECT_EQ(response.token_ids(0), kStart);
  EXPECT_FALSE(response.prefix_matched());
  request.set_chat_template("{{ messages[0].content }}{{ x }}");
  request.set_template_arguments_json(R"({"x": 1})");
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, request, &response).ok());
  EXPECT_EQ(response.text(), "Hi1");
}

TEST_F(TokenizerServiceTest, KnownPrefixIsNotEncodedAgain) {
  v1::EncodeChatRequest request = Chat();
  v1::EncodeChatResponse first;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, request, &first).ok());
  auto* answer = request.add_messages();
  answer->set_role("assistant");
  answer->set_content("Yes");
  *request.mutable_prefix_ids() = first.token_ids();
  v1::EncodeChatResponse next;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, request, &next).ok());
  EXPECT_TRUE(next.prefix_matched());
  std::vector<int32_t> expected = IdsOf("Yes");
  expected.push_back(kEnd);
  expected.push_back('\n' + 2);
  expected.push_back(kStart);
  for (const int32_t id : IdsOf("assistant\n")) expected.push_back(id);
  EXPECT_THAT(next.token_ids(), ::testing::ElementsAreArray(expected));
  request.mutable_messages(0)->set_content("Other");
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, request, &next).ok());
  EXPECT_FALSE(next.prefix_matched());
  EXPECT_EQ(next.token_ids(0), kStart);
}

TEST_F(TokenizerServiceTest, RaisingTemplateIsTheCallersErrorWithItsOwnMessage) {
  v1::EncodeChatResponse response;
  const grpc::Status status =
      Call(&v1::TokenizerService::Stub::EncodeChat, Chat("wizard"), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "No wizards: \"wizard\"");
}

TEST_F(TokenizerServiceTest, ChatWithoutMessagesOrTemplateIsInvalid) {
  v1::EncodeChatRequest request = Chat();
  request.clear_messages();
  v1::EncodeChatResponse response;
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::EncodeChat, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request = Chat();
  request.set_model("plain");
  const grpc::Status status = Call(&v1::TokenizerService::Stub::EncodeChat, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("no chat template"));
  request = Chat();
  request.set_tools_json("{");
  EXPECT_EQ(Call(&v1::TokenizerService::Stub::EncodeChat, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

// Protobuf itself refuses such a string on the wire or lets it pass, by build; both are errors
// here.
TEST_F(TokenizerServiceTest, InvalidUtf8IsAnErrorAndTheServiceGoesOn) {
  v1::EncodeRequest request;
  request.set_model("bytes");
  request.add_texts("ok");
  request.add_texts("\xff");
  v1::EncodeResponse response;
  const grpc::Status status = Call(&v1::TokenizerService::Stub::Encode, request, &response);
  EXPECT_FALSE(status.ok());
  request.set_texts(1, "fine");
  EXPECT_TRUE(Call(&v1::TokenizerService::Stub::Encode, request, &response).ok());
}

TEST_F(TokenizerServiceTest, StreamHoldsBackStopsAndCutCharacters) {
  grpc::ClientContext context;
  auto stream = stub_->Detokenize(&context);
  const auto send = [&stream](v1::DetokenizeRequest request, absl::string_view bytes) {
    for (const int32_t id : IdsOf(bytes)) request.add_token_ids(id);
    EXPECT_TRUE(stream->Write(request));
    v1::DetokenizeResponse response;
    EXPECT_TRUE(stream->Read(&response));
    return response;
  };
  v1::DetokenizeRequest first;
  first.set_model("bytes");
  first.add_stop("END");
  EXPECT_EQ(send(first, "a\xc3").text(), "a");
  EXPECT_EQ(send({}, "\xa9 E").text(), "é ");
  EXPECT_EQ(send({}, "N").text(), "");
  EXPECT_EQ(send({}, "x").text(), "ENx");
  const v1::DetokenizeResponse last = send({}, "zENDz");
  EXPECT_EQ(last.text(), "z");
  EXPECT_TRUE(last.stopped());
  v1::DetokenizeRequest finish;
  finish.set_finish(true);
  EXPECT_EQ(send(finish, "").text(), "");
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(TokenizerServiceTest, FinishFlushesWhatIsHeldBack) {
  grpc::ClientContext context;
  auto stream = stub_->Detokenize(&context);
  v1::DetokenizeRequest request;
  request.set_model("bytes");
  request.add_stop("END");
  for (const int32_t id : IdsOf("EN\xc3")) request.add_token_ids(id);
  request.set_finish(true);
  ASSERT_TRUE(stream->Write(request));
  v1::DetokenizeResponse response;
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.text(), "EN\xef\xbf\xbd");
  EXPECT_FALSE(response.stopped());
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(TokenizerServiceTest, StreamRefusesForeignIds) {
  grpc::ClientContext context;
  auto stream = stub_->Detokenize(&context);
  v1::DetokenizeRequest request;
  request.set_model("bytes");
  request.add_token_ids(100000);
  ASSERT_TRUE(stream->Write(request));
  v1::DetokenizeResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TokenizerServiceTest, StreamRefusesLateSettings) {
  grpc::ClientContext context;
  auto stream = stub_->Detokenize(&context);
  v1::DetokenizeRequest request;
  request.set_model("bytes");
  v1::DetokenizeResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(stream->Write(request));
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(TokenizerServiceTest, CountsTextsAndChats) {
  v1::CountTokensRequest request;
  request.set_model("bytes");
  request.add_texts("abc");
  request.add_texts("");
  *request.mutable_messages() = Chat().messages();
  v1::CountTokensResponse response;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::CountTokens, request, &response).ok());
  EXPECT_THAT(response.text_counts(), ElementsAre(3, 0));
  v1::EncodeChatResponse chat;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::EncodeChat, Chat(), &chat).ok());
  EXPECT_EQ(response.chat_count(), chat.token_ids_size());
}

TEST_F(TokenizerServiceTest, TokenizerIsDescribedWithItsPieces) {
  v1::GetTokenizerRequest request;
  v1::GetTokenizerResponse response;
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::GetTokenizer, request, &response).ok());
  EXPECT_THAT(response.models(), ElementsAre("bytes", "plain"));
  request.set_model("bytes");
  request.set_pieces(true);
  ASSERT_TRUE(Call(&v1::TokenizerService::Stub::GetTokenizer, request, &response).ok());
  EXPECT_EQ(response.vocab_size(), 258);
  EXPECT_THAT(response.piece_bytes(), SizeIs(258));
  EXPECT_EQ(response.piece_bytes(0xff + 2), "\xff");
  EXPECT_THAT(response.special_ids(), ElementsAre(kStart, kEnd));
  EXPECT_THAT(response.eos_token_ids(), ElementsAre(kEnd));
  EXPECT_EQ(response.eos_token(), "<|im_end|>");
  EXPECT_EQ(response.chat_template(), kTemplate);
  EXPECT_THAT(response.fingerprint(), SizeIs(64));
  EXPECT_EQ(response.invalid_bytes(), v1::INVALID_BYTES_MAXIMAL_SUBPART);
}

TEST(TokenizerRegistryTest, NamesAreUniqueAndNotEmpty) {
  TokenizerRegistry registry;
  EXPECT_TRUE(registry.Add("a", nullptr).ok());
  EXPECT_EQ(registry.Add("a", nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(registry.Add("", nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST(GgufTokenizerTest, MissingFileSaysItsPath) {
  const auto tokenizer = LoadModelTokenizer("/no/such/model.gguf");
  EXPECT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("/no/such/model.gguf"));
  EXPECT_THAT(std::string(LoadModelTokenizer("/no/such/folder").status().message()),
              HasSubstr("/no/such/folder"));
}

}  // namespace
}  // namespace mneme::tokenizer
