#include "common/weights/gguf.h"

#include <algorithm>

#include "common/weights/dequantize.h"
#include "common/weights/model_config.h"
#include "common/weights/rope.h"
#include "common/weights/test_data.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Uses everything the file offers, so that a wrong offset that got through would be read.
void ReadEverything(const GgufFile& file) {
  double sum = 0;
  for (const absl::string_view key : file.keys()) {
    sum += file.GetInt(key).ok() + file.GetFloat(key).ok() + file.GetBool(key).ok();
    if (const auto text = file.GetString(key); text.ok())
      sum += static_cast<double>(std::string(*text).size());
    if (const auto texts = file.GetStrings(key); texts.ok()) {
      for (const absl::string_view text : *texts)
        sum += static_cast<double>(std::string(text).size());
    }
    sum += file.GetFloats(key).ok() + file.GetInts(key).ok() + file.GetBools(key).ok();
  }
  for (const TensorView& tensor : file.tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
    ASSERT_TRUE(Dequantize(tensor, absl::MakeSpan(values)).ok());
    sum += values.empty() ? 0 : values.back();
  }
  if (const auto config = ReadGgufConfig(file); config.ok()) sum += ComputeRope(*config, 9).ok();
  EXPECT_FALSE(sum == -1);
}

// Writes GGUF bytes, wrong ones too.
class Builder {
 public:
  Builder& U32(uint32_t value) { return Raw(&value, sizeof(value)); }
  Builder& U64(uint64_t value) { return Raw(&value, sizeof(value)); }
  Builder& Text(absl::string_view text) { return U64(text.size()).Raw(text.data(), text.size()); }
  Builder& Raw(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
    return *this;
  }
  Builder& Header(uint64_t tensors, uint64_t values, uint32_t version = 3) {
    return Raw("GGUF", 4).U32(version).U64(tensors).U64(values);
  }
  Builder& Tensor(absl::string_view name, const std::vector<uint64_t>& innermost_first,
                  uint32_t type, uint64_t offset) {
    Text(name).U32(static_cast<uint32_t>(innermost_first.size()));
    for (const uint64_t size : innermost_first) U64(size);
    return U32(type).U64(offset);
  }
  // The padding after the tensor table, then `size` bytes of tensors.
  Builder& Data(size_t size) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + size);
    return *this;
  }
  Builder& Filler(size_t size) {
    bytes_.resize(bytes_.size() + size);
    return *this;
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

absl::Status ParseStatus(const Builder& builder) {
  return GgufFile::Parse(builder.bytes(), "test.gguf").status();
}

class GgufFixtureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto file = GgufFile::Open(TestData("quants.gguf"));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }
  std::unique_ptr<GgufFile> file_;
};

TEST_F(GgufFixtureTest, ScalarsOfEveryTypeAreRead) {
  EXPECT_EQ(file_->version(), 3u);
  EXPECT_EQ(*file_->GetInt("test.uint8"), 200);
  EXPECT_EQ(*file_->GetInt("test.int8"), -100);
  EXPECT_EQ(*file_->GetInt("test.uint16"), 60000);
  EXPECT_EQ(*file_->GetInt("test.int16"), -30000);
  EXPECT_EQ(*file_->GetInt("test.uint32"), 4000000000);
  EXPECT_EQ(*file_->GetInt("test.int32"), -2000000000);
  EXPECT_EQ(*file_->GetInt("test.int64"), -(int64_t{1} << 62));
  EXPECT_EQ(*file_->GetFloat("test.float32"), 0.5);
  EXPECT_EQ(*file_->GetFloat("test.float64"), 0.1);
  EXPECT_EQ(*file_->GetFloat("test.int8"), -100.0);
  EXPECT_TRUE(*file_->GetBool("test.bool"));
  EXPECT_EQ(*file_->GetString("test.string"), "grüße, 世界");
}

TEST_F(GgufFixtureTest, ArraysAreRead) {
  EXPECT_THAT(*file_->GetStrings("test.strings"), ElementsAre("a", "", "Ġthe", "世界"));
  EXPECT_THAT(*file_->GetFloats("test.floats"), ElementsAre(1.5f, -2.5f));
  EXPECT_THAT(*file_->GetInts("test.ints"), ElementsAre(3, 1, -2));
  EXPECT_THAT(*file_->GetBools("test.bools"), ElementsAre(true, false, true));
  EXPECT_EQ(*file_->GetArraySize("test.strings"), 4u);
}

TEST_F(GgufFixtureTest, TensorsHaveTheirTypesAndShapes) {
  const TensorView* tensor = file_->FindTensor("tensor.Q4_K");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->Describe(), "Q4_K [3, 512]");
  EXPECT_EQ(tensor->size_bytes, 3u * 2 * 144);
  EXPECT_EQ(file_->FindTensor("tensor.F32")->Describe(), "F32 [3, 5]");
  EXPECT_EQ(file_->FindTensor("tensor.Q2_K"), nullptr);
  EXPECT_EQ(file_->tensors().size(), 11u);
  for (const TensorView& view : file_->tensors()) EXPECT_TRUE(view.is_aligned()) << view.name;
}

TEST_F(GgufFixtureTest, MissingKeyIsNotFoundAndNamed) {
  const absl::Status status = file_->GetInt("llama.block_count").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("llama.block_count"), HasSubstr("quants.gguf")));
  EXPECT_EQ(*file_->GetIntOr("llama.block_count", 5), 5);
}

TEST_F(GgufFixtureTest, WrongTypeNamesKeyAndBothTypes) {
  const absl::Status status = file_->GetString("test.strings").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), AllOf(HasSubstr("test.strings"), HasSubstr("must be of type string"),
                                     HasSubstr("array of string")));
  EXPECT_FALSE(file_->GetIntOr("test.string", 5).ok());
  EXPECT_FALSE(file_->GetInt("test.bool").ok());
  EXPECT_FALSE(file_->GetInts("test.floats").ok());
  EXPECT_FALSE(file_->GetFloat("test.floats").ok());
  EXPECT_FALSE(file_->GetStrings("test.ints").ok());
  EXPECT_FALSE(file_->GetBools("test.ints").ok());
}

TEST_F(GgufFixtureTest, UnsignedOver63BitsIsRefusedAndNamed) {
  EXPECT_THAT(Message(file_->GetInt("test.uint64").status()),
              AllOf(HasSubstr("test.uint64"), HasSubstr("9223372036854775809")));
}

TEST(GgufTest, FileCutAnywhereIsRefused) {
  for (const char* name : {"quants.gguf", "tiny_llama.gguf"}) {
    const std::vector<uint8_t> whole = ReadBytes(TestData(name));
    const auto file = GgufFile::Parse(whole, name);
    ASSERT_TRUE(file.ok()) << file.status();
    const size_t header_size = (*file)->header_bytes().size();
    size_t end = 0;
    for (const TensorView& tensor : (*file)->tensors()) {
      end = std::max<size_t>(end, tensor.file_offset + tensor.size_bytes);
    }
    // Every byte of the header, then a stride that is no multiple of anything.
    for (size_t size = 0; size < end; size += size < header_size ? 1 : 61) {
      const std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<int64_t>(size));
      const absl::Status status = GgufFile::Parse(cut, "cut.gguf").status();
      ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name << " cut at " << size;
      ASSERT_THAT(Message(status), HasSubstr("cut.gguf")) << status;
    }
  }
}

TEST(GgufTest, CutTensorIsNamedWithItsOffset) {
  std::vector<uint8_t> bytes = ReadBytes(TestData("tiny_llama.gguf"));
  const auto file = GgufFile::Parse(bytes, "whole.gguf");
  ASSERT_TRUE(file.ok());
  const TensorView last = *std::max_element(
      (*file)->tensors().begin(), (*file)->tensors().end(),
      [](const TensorView& a, const TensorView& b) { return a.file_offset < b.file_offset; });
  bytes.resize(last.file_offset + last.size_bytes - 1);
  EXPECT_THAT(Message(GgufFile::Parse(bytes, "cut.gguf").status()),
              AllOf(HasSubstr(last.name), HasSubstr(absl::StrCat("at byte ", last.file_offset)),
                    HasSubstr("download it again")));
}

TEST(GgufTest, FlippedBitsInTheHeaderNeverCrash) {
  for (const char* name : {"quants.gguf", "tiny_llama.gguf"}) {
    std::vector<uint8_t> bytes = ReadBytes(TestData(name));
    const size_t header_size = (*GgufFile::Parse(bytes, name))->header_bytes().size();
    int accepted = 0;
    for (size_t at = 0; at < header_size; ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        bytes[at] ^= static_cast<uint8_t>(1 << bit);
        const auto file = GgufFile::Parse(bytes, "flipped.gguf");
        if (file.ok()) {
          ++accepted;
          ReadEverything(**file);
        } else {
          ASSERT_THAT(Message(file.status()), HasSubstr("flipped.gguf")) << file.status();
        }
        bytes[at] ^= static_cast<uint8_t>(1 << bit);
      }
    }
    EXPECT_GT(accepted, 0) << "flips inside texts leave a good file";
  }
}

TEST(GgufTest, EmptyTensorAndNoTensorsAreFine) {
  EXPECT_TRUE(ParseStatus(Builder().Header(0, 0)).ok());
  Builder empty;
  empty.Header(1, 0).Tensor("none", {0, 4}, 0, 0).Data(0);
  const auto file = GgufFile::Parse(empty.bytes(), "empty.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].num_elements(), 0);
  ReadEverything(**file);
}

TEST(GgufTest, VersionTwoAndNestedArraysAreRead) {
  Builder builder;
  builder.Header(0, 1, 2).Text("nested").U32(9).U32(9).U64(1).U32(5).U64(2).U32(7).U32(8);
  const auto file = GgufFile::Parse(builder.bytes(), "nested.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*(*file)->GetArraySize("nested"), 1u);
  EXPECT_FALSE((*file)->GetInts("nested").ok());
}

struct HostileCase {
  std::string what;
  Builder file;
  std::vector<std::string> message_parts;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

std::vector<HostileCase> HostileCases() {
  const auto key = [] { return std::move(Builder().Header(0, 1).Text("some.key")); };
  const auto table = [](uint64_t tensors) { return std::move(Builder().Header(tensors, 0)); };
  std::vector<HostileCase> cases;
  const auto add = [&cases](std::string what, const Builder& file, std::vector<std::string> parts,
                            absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    cases.push_back({std::move(what), file, std::move(parts), code});
  };
  add("EmptyFile", Builder(), {"magic", "byte 0"});
  add("OtherMagic", Builder().Raw("GGML", 4).Filler(60), {"magic", "another kind"});
  add("VersionOne", Builder().Header(0, 0, 1), {"version 1", "byte 4"});
  add("BigEndian", Builder().Header(0, 0, 0x03000000), {"big-endian"});
  add("HugeMetadataCount", Builder().Header(0, uint64_t{1} << 60),
      {"1152921504606846976", "byte 16"});
  add("HugeTensorCount", Builder().Header(~uint64_t{0}, 0), {"18446744073709551615 tensors"});
  add("KeyLengthPastEnd", Builder().Header(0, 1).U64(uint64_t{1} << 63).Filler(64),
      {"metadata key 0", "9223372036854775808"});
  add("KeyOverBound", Builder().Header(0, 1).U64(70000).Filler(80000), {"70000", "65535"});
  add("UnknownValueType", key().U32(13).Filler(64), {"some.key", "unknown type 13"});
  add("StringPastEnd", key().U32(8).U64(1000).Filler(64), {"some.key", "1000"});
  add("StringLengthOverflows", key().U32(8).U64(~uint64_t{0}).Filler(64), {"some.key"});
  add("ArrayCountOverflows", key().U32(9).U32(11).U64((uint64_t{1} << 61) + 1).Filler(64),
      {"some.key", "2305843009213693953 int64"});
  add("StringArrayPastEnd", key().U32(9).U32(8).U64(uint64_t{1} << 60).Filler(64),
      {"of 'some.key'"});
  Builder deep = key().U32(9);
  for (int i = 0; i < 1000; ++i) deep.U32(9).U64(1);
  add("DeepArrays", deep.Filler(64), {"some.key", "too deeply"});
  add("KeyTwice",
      Builder().Header(0, 2).Text("some.key").U32(4).U32(1).Text("some.key").U32(4).U32(1),
      {"some.key", "twice"});
  add("EscapesNames", Builder().Header(0, 1).Text("a\nb\x1b").U32(99).Filler(64), {"a\\nb\\033"});
  for (const uint32_t alignment : {0u, 4u, 33u, 1u << 31}) {
    add(absl::StrCat("Alignment", alignment),
        Builder().Header(0, 1).Text("general.alignment").U32(4).U32(alignment),
        {"general.alignment", absl::StrCat(alignment)});
  }
  add("SplitFile", Builder().Header(0, 1).Text("split.count").U32(2).Raw("\2", 2),
      {"split", "merge"}, absl::StatusCode::kUnimplemented);
  add("NoDimensions", table(1).Tensor("w", {}, 0, 0).Data(64), {"'w'", "0 dimensions"});
  add("FiveDimensions", table(1).Tensor("w", {1, 1, 1, 1, 1}, 0, 0).Data(64),
      {"'w'", "5 dimensions"});
  add("HugeDimensions", table(1).Text("w").U32(0xffffffff).Filler(64), {"'w'", "4294967295"});
  add("NegativeSize", table(1).Tensor("w", {~uint64_t{0}}, 0, 0).Data(64), {"'w'", "[-1]"});
  add("ProductOverflows",
      table(1).Tensor("w", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0).Data(64),
      {"'w'", "too large"});
  add("BytesOverflow", table(1).Tensor("w", {uint64_t{1} << 61}, 28, 0).Data(64), {"'w'"});
  add("HalfABlock", table(1).Tensor("w", {48, 2}, 2, 0).Data(64), {"'w'", "Q4_0 blocks of 32"});
  add("UnknownTensorType", table(1).Tensor("w", {32}, 200, 0).Data(64),
      {"'w'", "unknown type 200"});
  add("UnsupportedTensorType", table(1).Tensor("w", {256}, 10, 0).Data(128),
      {"'w'", "Q2_K", "Q4_K"}, absl::StatusCode::kUnimplemented);
  add("MisalignedTensor", table(1).Tensor("w", {4}, 0, 8).Data(64),
      {"'w'", "offset 8", "alignment"});
  add("TensorPastEnd", table(1).Tensor("w", {4}, 0, 64).Data(64), {"'w'", "data offset 64"});
  add("TensorEndPastEnd", table(1).Tensor("w", {16}, 0, 32).Data(64), {"'w'", "F32 [16]"});
  add("OffsetOverflows", table(1).Tensor("w", {16}, 0, ~uint64_t{0} - 31).Data(64), {"'w'"});
  add("Overlap", table(2).Tensor("w", {16}, 0, 0).Tensor("v", {8}, 0, 32).Data(64),
      {"'w'", "'v'", "overlap"});
  add("TensorTwice", table(2).Tensor("w", {8}, 0, 0).Tensor("w", {8}, 0, 32).Data(64),
      {"'w'", "twice"});
  return cases;
}

TEST(GgufTest, HostileFilesAreRefusedWithTheirReason) {
  for (const HostileCase& hostile : HostileCases()) {
    SCOPED_TRACE(hostile.what);
    const absl::Status status = ParseStatus(hostile.file);
    EXPECT_EQ(status.code(), hostile.code) << status;
    EXPECT_THAT(Message(status), HasSubstr("test.gguf"));
    for (const std::string& part : hostile.message_parts) {
      EXPECT_THAT(Message(status), HasSubstr(part));
    }
  }
}

TEST(GgufTest, OpenOfMissingFileAndOfFolderFail) {
  EXPECT_EQ(GgufFile::Open("/nowhere/a.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open("/tmp").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mneme::weights
