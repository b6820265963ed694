#include "services/cli/data_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "services/cli/log_file.h"
#include "services/cli/model_registry.h"

namespace mneme::cli {
namespace {

using ::testing::HasSubstr;

class DataFolderTest : public ::testing::Test {
 protected:
  DataFolderTest() {
    char folder[] = "/tmp/mneme-data-XXXXXX";
    path_ = mkdtemp(folder);
    setenv("MNEME_CACHE", (path_ + "/cache").c_str(), 1);
  }
  ~DataFolderTest() override {
    const int removed = system(absl::StrCat("rm -rf ", path_).c_str());
    EXPECT_EQ(removed, 0);
  }
  void Touch(const std::string& path) const { std::ofstream(path) << "x"; }

  std::string path_;
};

TEST_F(DataFolderTest, ASecondLockIsRefusedWithTheHoldersProcessId) {
  const DataFolder folder(path_ + "/data");
  ASSERT_TRUE(folder.Create().ok());
  EXPECT_EQ(folder.RunningPid(), 0);
  {
    const absl::StatusOr<DataFolderLock> lock = DataFolderLock::Take(folder);
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_EQ(folder.RunningPid(), getpid());
    const absl::Status second = DataFolderLock::Take(folder).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(second.message()), HasSubstr(absl::StrCat("process ", getpid())));
  }
  EXPECT_EQ(folder.RunningPid(), 0);
  EXPECT_TRUE(DataFolderLock::Take(folder).ok());
}

TEST_F(DataFolderTest, IsForItsOwnerOnly) {
  const DataFolder folder(path_ + "/deep/data");
  ASSERT_TRUE(folder.Create().ok());
  struct stat info = {};
  ASSERT_EQ(stat(folder.File("redis").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700);
}

TEST_F(DataFolderTest, AFolderThatCannotBeMadeSaysWhatToDo) {
  Touch(path_ + "/file");
  const absl::Status status = DataFolder(path_ + "/file/data").Create();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--data DIR"));
}

TEST_F(DataFolderTest, WithoutARunningSupervisorTheStateSaysHowToStartOne) {
  const absl::Status status = DataFolder(path_).ReadState().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("mneme up"));
}

TEST_F(DataFolderTest, AModelIsFoundByNameByPathAndAsTheDefault) {
  const DataFolder folder(path_ + "/data");
  const ModelList models(folder);
  EXPECT_EQ(models.Find("").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(CreateFolder(path_ + "/cache/models/smollm2-135m-instruct").ok());
  const std::string cached = path_ + "/cache/models/smollm2-135m-instruct/Some.Q4.gguf";
  Touch(cached);
  ASSERT_TRUE(models.Find("").ok()) << models.Find("").status();
  EXPECT_EQ(models.Find("")->path, cached);
  EXPECT_EQ(models.Find("")->name, "smollm2-135m-instruct");

  const std::string other = path_ + "/My Model.Q8_0.gguf";
  Touch(other);
  EXPECT_EQ(models.Find(other)->name, "my-model.q8_0");
  ASSERT_TRUE(models.Add("other", other, /*make_default=*/true).ok());
  EXPECT_EQ(models.Find("other")->path, other);
  EXPECT_EQ(models.Find("")->name, "other");
  EXPECT_THAT(std::string(models.Find("unknown").status().message()),
              HasSubstr("known: other, smollm2-135m-instruct"));

  EXPECT_EQ(models.Add("other", cached, false).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(models.Add("a b", cached, false).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(models.Remove("other").ok());
  EXPECT_EQ(models.Remove("other").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(models.Find("")->name, "smollm2-135m-instruct");
}

TEST_F(DataFolderTest, ARegisteredModelWhoseFilesAreGoneSaysSo) {
  const DataFolder folder(path_ + "/data");
  const ModelList models(folder);
  ASSERT_TRUE(models.Add("gone", path_ + "/gone.gguf", false).ok());
  EXPECT_THAT(std::string(models.Find("gone").status().message()), HasSubstr("gone: "));
}

TEST_F(DataFolderTest, LogFilesAreRotatedAtStartAndBySize) {
  const std::string path = path_ + "/a.log";
  {
    absl::StatusOr<LogFile> log = LogFile::Open(path, /*max_bytes=*/20);
    ASSERT_TRUE(log.ok()) << log.status();
    log->Write("first line\nsecond");
    log->Write(" line\nthird line\n");
    EXPECT_EQ(log->last_line(), "third line");
  }
  EXPECT_EQ(*config::ReadFile(path), "third line\n");
  EXPECT_EQ(*config::ReadFile(path + ".1"), "first line\nsecond line\n");
  ASSERT_TRUE(LogFile::Open(path).ok());
  EXPECT_EQ(*config::ReadFile(path), "");
  EXPECT_EQ(*config::ReadFile(path + ".1"), "third line\n");
  EXPECT_EQ(*config::ReadFile(path + ".2"), "first line\nsecond line\n");
}

}  // namespace
}  // namespace mneme::cli
