// Checkpoints made by hand, byte by byte; a real one of the trainer is in the golden set.
#include "common/weights/torch_checkpoint.h"

#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/weights/dequantize.h"
#include "common/weights/zip_archive.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mneme::weights {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Little(uint64_t value, int num_bytes) {
  std::string bytes;
  for (int i = 0; i < num_bytes; ++i) {
    bytes.push_back(static_cast<char>(i < 8 ? value >> 8 * i & 0xFF : 0));
  }
  return bytes;
}

// A zip as torch.save writes it: stored, sizes only in the directory.
std::string Zip(const std::vector<std::pair<std::string, std::string>>& members, int method = 0) {
  std::string file, directory;
  for (const auto& [name, data] : members) {
    directory += "PK\1\2" + Little(0, 6) + Little(method, 2) + Little(0, 8) +
                 Little(data.size(), 4) + Little(data.size(), 4) + Little(name.size(), 2) +
                 Little(0, 12) + Little(file.size(), 4) + name;
    file += "PK\3\4" + Little(0, 22) + Little(name.size(), 2) + Little(3, 2) + name + "pad" + data;
  }
  const std::string end = "PK\5\6" + Little(0, 4) + Little(members.size(), 2) +
                          Little(members.size(), 2) + Little(directory.size(), 4) +
                          Little(file.size(), 4) + Little(0, 2);
  return file + directory + end;
}

std::string Text(const std::string& text) { return "X" + Little(text.size(), 4) + text; }
std::string Byte(int value) { return "K" + Little(value, 1); }
std::string Tuple(const std::vector<int>& values) {
  std::string program = "(";
  for (const int value : values) program += Byte(value);
  return program + "t";
}

std::string TensorOf(const std::string& type, const std::string& key, int count, int offset,
                     const std::vector<int>& shape, const std::vector<int>& strides) {
  return "ctorch._utils\n_rebuild_tensor_v2\n((" + Text("storage") + "ctorch\n" + type + "\n" +
         Text(key) + Text("cuda:0") + Byte(count) + "tQ" + Byte(offset) + Tuple(shape) +
         Tuple(strides) +
         "\x89"
         "ccollections\nOrderedDict\n)RtR";
}

std::string Floats(int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const auto value = static_cast<float>(i) + 0.5f;
    bytes.append(reinterpret_cast<const char*>(&value), 4);
  }
  return bytes;
}

// { items }, after PROTO 2.
std::string Program(const std::string& items) { return "\x80\x02}(" + items + "u."; }

std::string Checkpoint(const std::string& program) {
  return Zip({{"run/data.pkl", program},
              {"run/byteorder", "little"},
              {"run/data/0", Floats(12)},
              {"run/data/1", Little(7, 8) + Little(9, 8)}});
}

absl::StatusOr<std::unique_ptr<TorchCheckpoint>> Read(const std::string& bytes) {
  return TorchCheckpoint::Parse(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), "test.pt");
}

std::vector<float> Values(const TorchCheckpoint& checkpoint, const std::string& name) {
  const TensorView* const view = checkpoint.FindTensor(name);
  if (view == nullptr) return {};
  std::vector<float> values(static_cast<size_t>(view->num_elements()));
  EXPECT_TRUE(Dequantize(*view, absl::MakeSpan(values)).ok());
  return values;
}

TEST(TorchCheckpointTest, NestedDictsOfTensorsAndNumbersAreRead) {
  const std::string state = Text("state") + "ccollections\nOrderedDict\n)R(" + Text("mean") +
                            TensorOf("FloatStorage", "0", 12, 2, {2, 3}, {3, 1}) + Text("num") +
                            TensorOf("LongStorage", "1", 2, 0, {2}, {1}) + Text("scalar") +
                            TensorOf("FloatStorage", "0", 12, 11, {}, {}) + "u}b";
  const std::string bytes = Checkpoint(Program(state + Text("iter") + "M\x2c\x01" + Text("loss") +
                                               "G?\xf8" + Little(0, 6) + Text("done") + "\x88" +
                                               Text("note") + Text("two") + Text("none") + "N"));
  const auto checkpoint = Read(bytes);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(Values(**checkpoint, "state.mean"), ElementsAre(2.5, 3.5, 4.5, 5.5, 6.5, 7.5));
  EXPECT_THAT(Values(**checkpoint, "state.num"), ElementsAre(7, 9));
  EXPECT_THAT(Values(**checkpoint, "state.scalar"), ElementsAre(11.5));
  EXPECT_EQ((*checkpoint)->FindTensor("state.mean")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*checkpoint)->numbers().at("iter"), 300);
  EXPECT_EQ((*checkpoint)->numbers().at("loss"), 1.5);
  EXPECT_EQ((*checkpoint)->numbers().at("done"), 1);
  EXPECT_EQ((*checkpoint)->texts().at("note"), "two");
  EXPECT_EQ((*checkpoint)->FindTensor("none"), nullptr);
}

TEST(TorchCheckpointTest, TransposedTensorsBecomeDense) {
  const auto checkpoint =
      Read(Checkpoint(Program(Text("t") + TensorOf("FloatStorage", "0", 12, 0, {3, 2}, {1, 3}))));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(Values(**checkpoint, "t"), ElementsAre(0.5, 3.5, 1.5, 4.5, 2.5, 5.5));
}

TEST(TorchCheckpointTest, TensorsBeyondTheirStorageAreRefused) {
  const auto error = [](const std::string& tensor) {
    const auto checkpoint = Read(Checkpoint(Program(Text("t") + tensor)));
    EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(checkpoint.status().message());
  };
  EXPECT_THAT(error(TensorOf("FloatStorage", "0", 12, 7, {2, 3}, {3, 1})), HasSubstr("beyond"));
  EXPECT_THAT(error(TensorOf("FloatStorage", "0", 12, 0, {2, 2}, {11, 1})), HasSubstr("beyond"));
  EXPECT_THAT(error(TensorOf("FloatStorage", "0", 12, 0, {13}, {0})), HasSubstr("larger"));
  EXPECT_THAT(error(TensorOf("FloatStorage", "0", 13, 0, {1}, {1})), HasSubstr("shorter"));
  EXPECT_THAT(error(TensorOf("FloatStorage", "9", 1, 0, {1}, {1})), HasSubstr("no storage 9"));
  EXPECT_THAT(error(TensorOf("ComplexStorage", "0", 1, 0, {1}, {1})), HasSubstr("unknown type"));
}

TEST(TorchCheckpointTest, NothingIsEverCalled) {
  const auto checkpoint =
      Read(Checkpoint(Program(Text("t") + "cos\nsystem\n" + Text("true") + "\x85R")));
  EXPECT_THAT(std::string(checkpoint.status().message()),
              HasSubstr("a checkpoint does not call os system"));
  EXPECT_FALSE(Read(Checkpoint("\x80\x04}.")).ok());  // another protocol
  EXPECT_FALSE(Read(Checkpoint("\x80\x02}i.")).ok());
}

TEST(TorchCheckpointTest, ADictThatHoldsItselfIsRefused) {
  // {} kept as 0, and put into itself.
  const auto checkpoint = Read(
      Checkpoint("\x80\x02}q" + Little(0, 1) + "(" + Text("again") + "h" + Little(0, 1) + "u."));
  EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("nested too deep"));
}

TEST(TorchCheckpointTest, CompressedMembersAreRefused) {
  const auto checkpoint = Read(Zip({{"run/data.pkl", Program("")}}, /*method=*/8));
  EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("compressed"));
}

TEST(TorchCheckpointTest, BrokenFilesAreRefusedNotFollowed) {
  const std::string whole = Checkpoint(
      Program(Text("a") + "}(" + Text("b") + TensorOf("FloatStorage", "0", 12, 2, {2, 3}, {3, 1}) +
              "u" + Text("n") + Byte(3)));
  ASSERT_TRUE(Read(whole).ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<uint8_t> cut(whole.begin(), whole.begin() + static_cast<int64_t>(size));
    EXPECT_FALSE(TorchCheckpoint::Parse(cut, "cut.pt").ok()) << size;
  }
  std::mt19937 random(1);
  for (int i = 0; i < 5000; ++i) {
    std::vector<uint8_t> broken(whole.begin(), whole.end());
    for (int k = 0; k < 3; ++k) broken[random() % broken.size()] = static_cast<uint8_t>(random());
    const auto checkpoint = TorchCheckpoint::Parse(broken, "broken.pt");
    if (!checkpoint.ok()) continue;
    for (const TensorView& tensor : (*checkpoint)->tensors()) {
      std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
      Dequantize(tensor, absl::MakeSpan(values)).IgnoreError();
    }
  }
}

}  // namespace
}  // namespace mneme::weights
