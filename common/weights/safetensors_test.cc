#include "common/weights/safetensors.h"

#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>

#include "common/weights/dequantize.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace mneme::weights {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::vector<uint8_t> FileOf(absl::string_view header, size_t data_size) {
  std::vector<uint8_t> bytes(8 + header.size() + data_size);
  const uint64_t size = header.size();
  std::memcpy(bytes.data(), &size, sizeof(size));
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  return bytes;
}

absl::Status ParseStatus(absl::string_view header, size_t data_size) {
  return SafetensorsFile::Parse(FileOf(header, data_size), "test.safetensors").status();
}

std::vector<float> Values(const TensorView& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  EXPECT_TRUE(Dequantize(tensor, absl::MakeSpan(values)).ok());
  return values;
}

template <typename T>
TensorView View(std::string name, TensorType type, std::vector<int64_t> shape,
                const std::vector<T>& data) {
  return {.name = std::move(name),
          .type = type,
          .shape = std::move(shape),
          .data = reinterpret_cast<const uint8_t*>(data.data()),
          .size_bytes = data.size() * sizeof(T)};
}

TEST(SafetensorsTest, EveryTypeOfTheReferenceWriterIsRead) {
  const auto file = SafetensorsFile::Open(TestData("types.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto values = [&file](absl::string_view name) {
    return Values(*(*file)->FindTensor(name));
  };
  EXPECT_THAT(values("u8"), ElementsAre(0, 1, 2));
  EXPECT_THAT(values("bool"), ElementsAre(1, 0));
  EXPECT_THAT(values("i8"), ElementsAre(-1, 2));
  EXPECT_THAT(values("i16"), ElementsAre(-300));
  EXPECT_THAT(values("i32"), ElementsAre(-70000, 70000));
  EXPECT_THAT(values("i64"), ElementsAre(1099511627776.0f));
  EXPECT_THAT(values("f16"), ElementsAre(1.5f, -0.25f));
  EXPECT_THAT(values("f32"), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(values("f64"), ElementsAre(0.5f));
  EXPECT_THAT(values("empty"), ElementsAre());
  EXPECT_THAT((*file)->FindTensor("f32")->shape, ElementsAre(1, 2, 3));
  EXPECT_THAT((*file)->FindTensor("f64")->shape, ElementsAre());
  EXPECT_EQ((*file)->FindTensor("bool")->type, TensorType::kBool);
  EXPECT_EQ((*file)->FindTensor("absent"), nullptr);
  EXPECT_THAT((*file)->metadata(), ElementsAre(Pair("format", "np"), Pair("note", "grüße")));
}

TEST(SafetensorsTest, FileCutAnywhereIsRefused) {
  const std::vector<uint8_t> whole = ReadBytes(TestData("types.safetensors"));
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<int64_t>(size));
    const absl::Status status = SafetensorsFile::Parse(cut, "cut.safetensors").status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << "cut at " << size;
    ASSERT_THAT(Message(status), HasSubstr("cut.safetensors"));
  }
}

TEST(SafetensorsTest, FlippedBitsInTheHeaderNeverCrash) {
  std::vector<uint8_t> bytes = ReadBytes(TestData("types.safetensors"));
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  int accepted = 0;
  for (size_t at = 0; at < 8 + header_size; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      bytes[at] ^= static_cast<uint8_t>(1 << bit);
      const auto file = SafetensorsFile::Parse(bytes, "flipped.safetensors");
      if (file.ok()) {
        ++accepted;
        for (const TensorView& tensor : (*file)->tensors()) Values(tensor);
      }
      bytes[at] ^= static_cast<uint8_t>(1 << bit);
    }
  }
  EXPECT_GT(accepted, 0) << "flips inside names leave a good file";
}

TEST(SafetensorsTest, HeaderLengthOfTwoTo60IsRefused) {
  std::vector<uint8_t> bytes = ReadBytes(TestData("types.safetensors"));
  const uint64_t size = uint64_t{1} << 60;
  std::memcpy(bytes.data(), &size, 8);
  EXPECT_THAT(Message(SafetensorsFile::Parse(bytes, "x").status()),
              AllOf(HasSubstr("1152921504606846976 bytes, past the end"), HasSubstr("download")));
}

struct HostileCase {
  std::string header;
  size_t data_size;
  std::vector<std::string> message_parts;
};

TEST(SafetensorsTest, HostileHeadersAreRefusedWithTheirReason) {
  const std::string deep = "{\"w\":" + std::string(100000, '[');
  const std::vector<HostileCase> cases = {
      {"", 0, {"JSON"}},
      {"[]", 0, {"not a JSON object"}},
      {"{", 0, {"not valid JSON"}},
      {"{\"w\":1}", 0, {"'w'", "object"}},
      {deep, 0, {"nested"}},
      {R"({"w":{"shape":[1],"data_offsets":[0,4]}})", 4, {"'w'", "no dtype"}},
      {R"({"w":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, {"'w'", "'F33'", "F32"}},
      {R"({"w":{"dtype":"Q4_0","shape":[32],"data_offsets":[0,18]}})", 18, {"'w'", "'Q4_0'"}},
      {R"({"w":{"dtype":3,"shape":[1],"data_offsets":[0,4]}})", 4, {"'w'", "no dtype"}},
      {R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", 4, {"'w'", "no shape"}},
      {R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, {"'w'", "no shape"}},
      {R"({"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, {"'w'", "no shape"}},
      {R"({"w":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4, {"'w'"}},
      {R"({"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})",
       4,
       {"'w'", "too large"}},
      {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
       4,
       {"'w'", "offset 0", "4 bytes", "F32 [2] takes 8"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, {"'w'", "4 to 0"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       4,
       {"'w'", "4 to 8", "outside"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, {"'w'", "data_offsets"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("v":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
       6,
       {"'v'", "offset 2", "overlaps"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, {"'w'", "gap"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, {"end at data offset 4"}},
      {R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4,
       {"'w' appears twice"}},
      {R"({"w":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}})",
       4,
       {"'dtype' appears twice"}},
      {R"({"__metadata__":{"a":1}})", 0, {"__metadata__", "'a'"}},
      {"{\"\xff\":1}", 0, {"not valid JSON"}},
  };
  for (const HostileCase& hostile : cases) {
    SCOPED_TRACE(hostile.header.substr(0, 100));
    const absl::Status status = ParseStatus(hostile.header, hostile.data_size);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(Message(status), HasSubstr("test.safetensors"));
    for (const std::string& part : hostile.message_parts) {
      EXPECT_THAT(Message(status), HasSubstr(part));
    }
  }
}

TEST(SafetensorsTest, ShardsAreOneModel) {
  const auto model = SafetensorsModel::Open(TestData("tiny_llama"));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->files().size(), 2u);
  EXPECT_EQ((*model)->tensors().size(), 21u);
  EXPECT_EQ((*model)->FindTensor("lm_head.weight")->Describe(), "F16 [48, 32]");
  EXPECT_EQ((*model)->FindTensor("absent"), nullptr);
}

TEST(SafetensorsTest, BrokenIndexesAreRefused) {
  const testing::TempFolder folder;
  std::filesystem::copy(TestData("tiny_llama"), folder.path());
  const auto open_with = [&folder](absl::string_view index) {
    WriteBytes(folder.File("model.safetensors.index.json"), index);
    return SafetensorsModel::Open(folder.path()).status();
  };
  EXPECT_THAT(Message(open_with("{}")), HasSubstr("weight_map"));
  EXPECT_THAT(Message(open_with("{")), HasSubstr("JSON"));
  EXPECT_THAT(Message(open_with(R"({"weight_map":{"w":1}})")), HasSubstr("'w'"));
  for (const char* file : {"../x.safetensors", "/etc/passwd", "x.bin", "", "a/b.safetensors",
                           ".safetensors", "x\\u0000.safetensors"}) {
    const absl::Status status = open_with(absl::StrCat(R"({"weight_map":{"w":")", file, R"("}})"));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << file << " " << status;
    EXPECT_THAT(Message(status), HasSubstr("'w'"));
  }
  const absl::Status missing_shard = open_with(R"({"weight_map":{"w":"absent.safetensors"}})");
  EXPECT_EQ(missing_shard.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(missing_shard), HasSubstr("absent.safetensors"));
  EXPECT_THAT(Message(open_with(R"({"weight_map":{"w":"model-00001-of-00002.safetensors"}})")),
              AllOf(HasSubstr("'w'"), HasSubstr("not in the file")));
}

TEST(SafetensorsTest, FolderWithoutWeightsIsNotFound) {
  const testing::TempFolder folder;
  EXPECT_EQ(SafetensorsModel::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsModel::Open("/nowhere").status().code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsWriterTest, WhatIsWrittenIsReadBackAligned) {
  const testing::TempFolder folder;
  const std::string path = folder.File("out.safetensors");
  const std::vector<float> f32 = {1, -2, 3, 4.5f};
  const std::vector<uint16_t> bf16 = {0x3f80, 0xc000};
  const std::vector<uint8_t> u8 = {7, 8, 9};
  const std::vector<int64_t> i64 = {-5};
  const std::vector<float> none;
  const std::map<std::string, std::string> metadata = {{"step", "12"}, {"text", "a\"b\n世"}};
  const absl::Status status = WriteSafetensors(
      path,
      {View("a.u8", TensorType::kU8, {3}, u8), View("b", TensorType::kF32, {2, 2}, f32),
       View("c.bf16", TensorType::kBF16, {2, 1}, bf16), View("d", TensorType::kI64, {}, i64),
       View("e", TensorType::kF32, {0, 3}, none)},
      metadata);
  ASSERT_TRUE(status.ok()) << status;
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata(), metadata);
  EXPECT_THAT(Values(*(*file)->FindTensor("a.u8")), ElementsAre(7, 8, 9));
  EXPECT_THAT(Values(*(*file)->FindTensor("b")), ElementsAre(1, -2, 3, 4.5f));
  EXPECT_THAT(Values(*(*file)->FindTensor("c.bf16")), ElementsAre(1, -2));
  EXPECT_THAT(Values(*(*file)->FindTensor("d")), ElementsAre(-5));
  EXPECT_THAT((*file)->FindTensor("e")->shape, ElementsAre(0, 3));
  for (const TensorView& tensor : (*file)->tensors()) EXPECT_TRUE(tensor.is_aligned());
  // Nothing else is left in the folder.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(SafetensorsWriterTest, WritingOverAFileThatIsMappedLeavesItsReaderAlone) {
  const testing::TempFolder folder;
  const std::string path = folder.File("out.safetensors");
  const std::vector<float> before = {1, 2};
  const std::vector<float> after = {3};
  ASSERT_TRUE(WriteSafetensors(path, {View("w", TensorType::kF32, {2}, before)}, {}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(WriteSafetensors(path, {View("w", TensorType::kF32, {1}, after)}, {}).ok());
  EXPECT_THAT(Values(*(*file)->FindTensor("w")), ElementsAre(1, 2));
  EXPECT_THAT(Values(*(*SafetensorsFile::Open(path))->FindTensor("w")), ElementsAre(3));
}

TEST(SafetensorsWriterTest, WrongTensorsAreRefusedAndWriteNothing) {
  const testing::TempFolder folder;
  const std::string path = folder.File("out.safetensors");
  const std::vector<float> data = {1, 2};
  const TensorView good = View("w", TensorType::kF32, {2}, data);
  TensorView wrong_shape = good;
  wrong_shape.shape = {3};
  TensorView quantized = good;
  quantized.type = TensorType::kQ8_0;
  TensorView bad_name = good;
  bad_name.name = "w\xff";
  TensorView reserved = good;
  reserved.name = "__metadata__";
  const std::vector<std::vector<TensorView>> cases = {
      {good, good}, {wrong_shape}, {quantized}, {bad_name}, {reserved}};
  for (const std::vector<TensorView>& tensors : cases) {
    EXPECT_EQ(WriteSafetensors(path, tensors, {}).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(WriteSafetensors(path, {good}, {{"key", "\xff"}}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(folder.File("absent/out.safetensors"), {good}, {}).code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriterTest, WriteThatFailsInTheMiddleLeavesTheOldFile) {
  const testing::TempFolder folder;
  const std::string path = folder.File("out.safetensors");
  const std::vector<float> old = {1, 2};
  ASSERT_TRUE(WriteSafetensors(path, {View("w", TensorType::kF32, {2}, old)}, {}).ok());
  const std::vector<float> data(1 << 20);
  // A bound on file sizes stands in for a full disk. The signal that comes with it is ignored.
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit bound = {1 << 16, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &bound), 0);
  const absl::Status status =
      WriteSafetensors(path, {View("w", TensorType::kF32, {1 << 20}, data)}, {});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(Values(*(*SafetensorsFile::Open(path))->FindTensor("w")), ElementsAre(1, 2));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace mneme::weights
