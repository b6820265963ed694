// Speed of encoding and of token-by-token decoding. The tokenizer is the one MNEME_BENCH_TOKENIZER
// names (a folder or file that LoadTokenizer knows), else a vocabulary of bytes without merges.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/text/byte_level.h"
#include "common/text/chat_template.h"
#include "common/text/stream_decoder.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_files.h"

namespace mneme::text {
namespace {

std::unique_ptr<Tokenizer> Load() {
  if (const char* path = std::getenv("MNEME_BENCH_TOKENIZER")) return LoadTokenizer(path).value();
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "qwen2";
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back(ToByteLevel(std::string(1, static_cast<char>(byte))));
  }
  return Tokenizer::FromGguf(vocabulary).value();
}

const Tokenizer& Shared() {
  static const std::unique_ptr<Tokenizer> tokenizer = Load();
  return *tokenizer;
}

std::string Prose(size_t size) {
  std::string text;
  while (text.size() < size) {
    text += "The quick brown fox, 42 of them, doesn't jump over the lazy dog. Größe 日本語!\n";
  }
  return text;
}

void BM_Encode(benchmark::State& state) {
  const std::string text = Prose(static_cast<size_t>(state.range(0)));
  Shared();  // loading is not what is measured
  size_t num_tokens = 0;
  for (auto _ : state) num_tokens += Shared().Encode(text, {})->size();
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
  state.counters["tokens"] =
      benchmark::Counter(static_cast<double>(num_tokens), benchmark::Counter::kIsRate);
}
BENCHMARK(BM_Encode)->Arg(256)->Arg(8 << 10)->Arg(1 << 20);

// Token by token, as an answer is streamed, without and with stop strings.
void BM_StreamDecode(benchmark::State& state) {
  const std::vector<int32_t> ids = Shared().Encode(Prose(64 << 10), {}).value();
  StreamDecoder::Options options;
  for (int64_t stop = 0; stop < state.range(0); ++stop) {
    options.stop.push_back("\nUser" + std::to_string(stop) + ":");
  }
  for (auto _ : state) {
    StreamDecoder decoder(Shared().table(), options);
    for (const int32_t id : ids) benchmark::DoNotOptimize(decoder.Push(id).value());
    benchmark::DoNotOptimize(decoder.Finish());
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(ids.size()));
}
BENCHMARK(BM_StreamDecode)->Arg(0)->Arg(4)->Arg(16);

void BM_RenderChat(benchmark::State& state) {
  const ChatTemplate chat_template =
      ChatTemplate::Create(
          "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
          "{% endfor %}",
          {})
          .value();
  ChatInput input;
  for (int64_t message = 0; message < state.range(0); ++message) {
    input.messages.push_back({.role = "user", .content = Prose(200)});
  }
  for (auto _ : state) benchmark::DoNotOptimize(chat_template.Render(input).value());
}
BENCHMARK(BM_RenderChat)->Arg(2)->Arg(100);

}  // namespace
}  // namespace mneme::text
