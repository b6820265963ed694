// Texts of the golden files: chat templates and labels, windows of perplexity, prompts of
// benchmarks. Files are recognised by what they hold, so that further ones of a format run too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "common/benchmarks/hidden_fact.h"
#include "common/benchmarks/infinite_bench.h"
#include "common/benchmarks/long_bench.h"
#include "common/benchmarks/prompts.h"
#include "common/dataset/chat_template.h"
#include "common/dataset/lm_windows.h"
#include "tests/golden/beacon/toy_tokenizer.h"
#include "tests/golden/golden_folder.h"

namespace mneme::testing {
namespace {

namespace fs = std::filesystem;
using benchmarks::Prompts;
using json = nlohmann::ordered_json;
using Ids = std::vector<int32_t>;

fs::path Folder() { return GoldenFolder("beacon"); }

json Load(const std::string& stem) {
  std::ifstream in(Folder() / (stem + ".json"), std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// Whether `file` has a list `name` whose first entry has all of `fields`.
bool HasCases(const json& file, const char* name, const std::vector<std::string>& fields) {
  if (!file.is_object() || !file.contains(name)) return false;
  const json& cases = file[name];
  return cases.is_array() && !cases.empty() && cases[0].is_object() &&
         std::all_of(fields.begin(), fields.end(),
                     [&cases](const std::string& field) { return cases[0].contains(field); });
}

bool IsChatTemplates(const json& file) {
  return HasCases(file, "cases", {"template", "messages", "raw"});
}
bool IsLmWindows(const json& file) {
  return HasCases(file, "cases", {"num_tokens", "stride", "chunks"});
}
bool IsLongBench(const json& file) { return HasCases(file, "longbench", {"task", "prompt"}); }
bool IsInfiniteBench(const json& file) { return HasCases(file, "infbench", {"task", "prompt"}); }
bool IsGenerated(const json& file) { return HasCases(file, "generated", {"kind", "prompt"}); }

bool IsPrompts(const json& file) {
  return IsLongBench(file) || IsInfiniteBench(file) || IsGenerated(file);
}
bool IsBroken(const json& file) { return file.is_discarded(); }

// Stems of the files of one format, sorted.
std::vector<std::string> Stems(bool (*is_format)(const json&)) {
  std::vector<std::string> stems;
  std::error_code error;
  for (fs::directory_iterator it(Folder(), error), end; !error && it != end; it.increment(error)) {
    const std::string stem = it->path().stem().string();
    if (it->path().extension() == ".json" && is_format(Load(stem))) stems.push_back(stem);
  }
  std::sort(stems.begin(), stems.end());
  return stems;
}

std::string StemName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !absl::ascii_isalnum(c); }, '_');
  return name;
}

dataset::TemplateName Template(const json& one) {
  const auto name = dataset::ParseTemplateName(one["template"].get<std::string>());
  EXPECT_TRUE(name.ok()) << name.status();
  return name.value_or(dataset::TemplateName::kNo);
}

dataset::Conversation ConversationOf(const json& one) {
  dataset::Conversation conversation;
  if (const json system = one.value("system", json()); !system.is_null()) {
    conversation.system = system.get<std::string>();
  }
  for (const json& message : one["messages"]) {
    const bool is_user = message["role"] == "user";
    EXPECT_TRUE(is_user || message["role"] == "assistant") << message["role"];
    conversation.turns.push_back(
        {.role = is_user ? dataset::Role::kUser : dataset::Role::kAssistant,
         .content = message["content"].get<std::string>()});
  }
  conversation.add_generation_prompt = one["add_generation_prompt"];
  return conversation;
}

Prompts OwnPrompts() {
  absl::StatusOr<Prompts> prompts = Prompts::Parse(benchmarks::DefaultPromptsJson());
  EXPECT_TRUE(prompts.ok()) << prompts.status();
  return prompts.ok() ? *std::move(prompts) : Prompts();
}

class ChatTemplatesGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ChatTemplatesGoldenTest, TextsIdsAndLabelsEqualTheReference) {
  const json file = Load(GetParam());
  for (const json& one : file["cases"]) {
    SCOPED_TRACE(one.dump().substr(0, 400));
    const auto encoded =
        dataset::EncodeConversation(Template(one), ConversationOf(one),
                                    ToyTokenizer(file, one["adds_bos"]), one.contains("labels"));
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    EXPECT_EQ(encoded->text, one["raw"].get<std::string>());
    EXPECT_EQ(encoded->input_ids, one["input_ids"].get<Ids>());
    EXPECT_EQ(encoded->labels, one.value("labels", Ids()));
  }
}

class LmWindowsGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(LmWindowsGoldenTest, ChunksEqualTheReference) {
  const json file = Load(GetParam());
  for (const json& one : file["cases"]) {
    SCOPED_TRACE(one.dump().substr(0, 100));
    std::string text;
    for (int64_t i = 0; i < one["num_tokens"].get<int64_t>(); ++i) {
      text += static_cast<char>('a' + i % 26);
    }
    const json min_length = one.value("min_length", json());
    const auto chunks = dataset::EncodeWindows(
        text, ToyTokenizer(file, one["adds_bos"]),
        {.max_length = one["max_length"],
         .stride = one["stride"],
         .min_length = min_length.is_null() ? 0 : min_length.get<int64_t>()});
    ASSERT_TRUE(chunks.ok()) << chunks.status();
    ASSERT_EQ(chunks->size(), one["chunks"].size());
    for (size_t i = 0; i < chunks->size(); ++i) {
      EXPECT_EQ((*chunks)[i].input_ids, one["chunks"][i]["input_ids"].get<Ids>());
      EXPECT_EQ((*chunks)[i].labels, one["chunks"][i]["labels"].get<Ids>());
    }
  }
}

class LongBenchGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(LongBenchGoldenTest, PromptsAndSettingsEqualTheReference) {
  const json file = Load(GetParam());
  const Prompts prompts = OwnPrompts();
  for (const json& one : file["longbench"]) {
    const auto task = prompts.LongBench(one["task"].get<std::string>());
    ASSERT_TRUE(task.ok()) << task.status();
    const auto prompt = benchmarks::LongBenchPrompt(**task, "<CONTEXT>", "<INPUT>");
    ASSERT_TRUE(prompt.ok()) << prompt.status();
    EXPECT_EQ(*prompt, one["prompt"].get<std::string>());
    EXPECT_EQ((*task)->max_new_tokens, one["max_new_tokens"].get<int64_t>()) << one["task"];
    EXPECT_EQ((*task)->metric, one["metric"].get<std::string>()) << one["task"];
    EXPECT_EQ((*task)->category, one["category"].get<std::string>()) << one["task"];
  }
}

class InfiniteBenchGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(InfiniteBenchGoldenTest, PromptsLabelsAndSettingsEqualTheReference) {
  const json file = Load(GetParam());
  const Prompts prompts = OwnPrompts();
  for (const json& one : file["infbench"]) {
    SCOPED_TRACE(one["task"]);
    const auto task =
        prompts.InfiniteBench(one["template"].get<std::string>(), one["task"].get<std::string>());
    ASSERT_TRUE(task.ok()) << task.status();
    const json& example = one["example"];
    const auto sample = benchmarks::MakeInfiniteBenchSample(
        **task, {.context = example["context"],
                 .input = example["input"],
                 .options = example.value("options", std::vector<std::string>()),
                 .answer = example["answer"]});
    ASSERT_TRUE(sample.ok()) << sample.status();
    EXPECT_EQ(sample->prompt, one["prompt"].get<std::string>());
    EXPECT_EQ(sample->label, nlohmann::json(one["answer"]));
    EXPECT_EQ((*task)->max_new_tokens, one["max_new_tokens"].get<int64_t>());
  }
}

class GeneratedGoldenTest : public ::testing::TestWithParam<std::string> {};

// Passkeys are drawn in the file's order, one generator for each seed and number of digits.
std::vector<std::string> DrawnPasskeys(const json& cases) {
  std::map<std::pair<uint64_t, size_t>, std::vector<size_t>> groups;
  for (size_t i = 0; i < cases.size(); ++i) {
    if (cases[i]["kind"] != "passkey") continue;
    groups[{cases[i]["seed"].get<uint64_t>(), cases[i]["passkey"].get<std::string>().size()}]
        .push_back(i);
  }
  std::vector<std::string> passkeys(cases.size());
  for (const auto& [key, members] : groups) {
    const std::vector<int64_t> lengths(members.size(), 0);
    const auto drawn =
        benchmarks::DrawPasskeyCases(lengths, {0}, static_cast<int64_t>(key.second), key.first);
    EXPECT_TRUE(drawn.ok()) << drawn.status();
    for (size_t i = 0; i < members.size(); ++i) passkeys[members[i]] = (*drawn)[i].passkey;
  }
  return passkeys;
}

TEST_P(GeneratedGoldenTest, SamplesEqualTheReference) {
  const json file = Load(GetParam());
  const Prompts prompts = OwnPrompts();
  const json& cases = file["generated"];
  const std::vector<std::string> passkeys = DrawnPasskeys(cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    const json& one = cases[i];
    SCOPED_TRACE(one.dump().substr(0, 100));
    const int64_t length = one["context_length"];
    const int64_t depth = one["depth"];
    absl::StatusOr<dataset::EncodedConversation> sample;
    if (one["kind"] == "passkey") {
      EXPECT_EQ(prompts.passkey().question, one["question"].get<std::string>());
      EXPECT_EQ(passkeys[i], one["passkey"].get<std::string>());
      sample = benchmarks::PasskeySample(prompts.passkey(),
                                         {.length = length, .depth = depth, .passkey = passkeys[i]},
                                         Template(one), ToyTokenizer(file, /*adds_bos=*/true));
    } else {
      ASSERT_EQ(one["kind"], "needle");
      // The needle and its question are options of the test; ours are the defaults.
      benchmarks::NeedleTexts texts = prompts.needle();
      texts.needle = one["needle"];
      texts.question = one["question"];
      sample = benchmarks::NeedleSample(texts, one["context"].get<std::string>(), length, depth,
                                        Template(one), ToyTokenizer(file, /*adds_bos=*/false));
    }
    ASSERT_TRUE(sample.ok()) << sample.status();
    EXPECT_EQ(sample->text, one["prompt"].get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(Files, ChatTemplatesGoldenTest,
                         ::testing::ValuesIn(Stems(IsChatTemplates)), StemName);
INSTANTIATE_TEST_SUITE_P(Files, LmWindowsGoldenTest, ::testing::ValuesIn(Stems(IsLmWindows)),
                         StemName);
INSTANTIATE_TEST_SUITE_P(Files, LongBenchGoldenTest, ::testing::ValuesIn(Stems(IsLongBench)),
                         StemName);
INSTANTIATE_TEST_SUITE_P(Files, InfiniteBenchGoldenTest,
                         ::testing::ValuesIn(Stems(IsInfiniteBench)), StemName);
INSTANTIATE_TEST_SUITE_P(Files, GeneratedGoldenTest, ::testing::ValuesIn(Stems(IsGenerated)),
                         StemName);

// A file of prompts may have only some of its three lists.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LongBenchGoldenTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(InfiniteBenchGoldenTest);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GeneratedGoldenTest);

// Without a file of a format nothing would be compared, and nothing above would fail.
TEST(PromptsGoldenFolderTest, HoldsCasesOfEachFormat) {
  EXPECT_THAT(Stems(IsBroken), ::testing::IsEmpty());
  for (const auto is_format : {IsChatTemplates, IsLmWindows, IsPrompts}) {
    EXPECT_THAT(Stems(is_format), ::testing::Not(::testing::IsEmpty())) << Folder();
  }
}

}  // namespace
}  // namespace mneme::testing
