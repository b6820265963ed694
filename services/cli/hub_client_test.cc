// Against a local server of the hub's shape: pages, redirects to another host for large files,
// ranges, connections that break off, wrong hashes.
#include "services/cli/hub_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/config/config.h"
#include "nlohmann/json.hpp"
#include "services/cli/file_hash.h"
#include "services/cli/model_pull.h"

namespace mneme::cli {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A listening HTTP server in a thread of its own.
class HttpServer {
 public:
  HttpServer() { port_ = server.bind_to_any_port("127.0.0.1"); }
  ~HttpServer() {
    server.stop();
    thread_.join();
  }
  void Start() {
    thread_ = std::jthread([this] { server.listen_after_bind(); });
    while (!server.is_running()) std::this_thread::yield();
  }
  std::string origin() const { return absl::StrCat("http://127.0.0.1:", port_); }

  httplib::Server server;

 private:
  int port_ = 0;
  std::jthread thread_;
};

class HubClientTest : public ::testing::Test {
 protected:
  HubClientTest() {
    char folder[] = "/tmp/mneme-hub-XXXXXX";
    folder_ = mkdtemp(folder);
    for (int i = 0; i < 300'000; ++i) weights_.push_back(static_cast<char>(i * 31 + i / 1000));
    std::ofstream(File("reference")) << weights_;
    weights_sha256_ = *Sha256OfFile(File("reference"));
    std::ofstream(File("reference")) << kConfig;
    config_sha1_ = *GitBlobSha1OfFile(File("reference"));
    ServeHub();
    ServeStorage();
    hub_.Start();
    storage_.Start();
  }
  ~HubClientTest() override { std::filesystem::remove_all(folder_); }

  std::string File(const std::string& name) const { return folder_ + "/" + name; }
  static std::string Range(const httplib::Request& request) {
    return request.get_header_value("Range");
  }

  void ServeHub() {
    hub_.server.Get("/api/models/org/tiny/tree/main", [this](const httplib::Request& request,
                                                             httplib::Response& response) {
      CheckToken(request, response);
      if (response.status == 401) return;
      nlohmann::json page = nlohmann::json::array();
      if (!request.has_param("cursor")) {
        page = {{{"type", "directory"}, {"path", "onnx"}, {"oid", "d"}, {"size", 0}},
                {{"type", "file"},
                 {"path", "config.json"},
                 {"oid", config_sha1_},
                 {"size", std::string(kConfig).size()}},
                {{"type", "file"}, {"path", "README.md"}, {"oid", "r"}, {"size", 5}},
                {{"type", "file"}, {"path", "../escape.json"}, {"oid", "r"}, {"size", 5}}};
        response.set_header("Link", "<" + hub_.origin() +
                                        "/api/models/org/tiny/tree/main?recursive=true&cursor=2>; "
                                        "rel=\"next\"");
      } else {
        page = {{{"type", "file"},
                 {"path", "model.safetensors"},
                 {"oid", "pointer"},
                 {"size", 130},
                 {"lfs", {{"oid", weights_sha256_}, {"size", weights_.size()}}}}};
      }
      response.set_content(page.dump(), "application/json");
    });
    // A mirror with the older listing only.
    hub_.server.Get("/api/models/org/old/revision/main", [](const httplib::Request&,
                                                            httplib::Response& response) {
      response.set_content(R"({"siblings": [{"rfilename": "tiny.gguf"}, {"rfilename": "notes"}]})",
                           "application/json");
    });
    hub_.server.Get("/org/(tiny|old)/resolve/main/(.+)",
                    [this](const httplib::Request& request, httplib::Response& response) {
                      CheckToken(request, response);
                      if (response.status == 401) return;
                      if (request.matches[2] == "config.json") {
                        response.set_header("ETag", "\"" + config_sha1_ + "\"");
                        response.set_content(kConfig, "application/json");
                        return;
                      }
                      response.set_header("X-Linked-Etag", "\"" + weights_sha256_ + "\"");
                      response.set_header("X-Linked-Size", std::to_string(weights_.size()));
                      response.set_redirect(storage_.origin() + "/blob?signed=a%2Fb", 302);
                    });
  }

  // Another host, where large files lie.
  void ServeStorage() {
    storage_.server.Get("/blob", [this](const httplib::Request& request,
                                        httplib::Response& response) {
      requests_.push_back(Range(request));
      storage_tokens_.push_back(request.get_header_value("Authorization"));
      EXPECT_EQ(request.get_param_value("signed"), "a/b");
      if (fail_with_ != 0) {
        response.status = fail_with_;
        return;
      }
      const size_t begin = request.ranges.empty() ? 0 : request.ranges[0].first;
      if (cut_every_ > 0) {
        // Promises everything, sends a piece, and hangs up.
        const size_t length = weights_.size();
        response.set_content_provider(
            length, "application/octet-stream",
            [this, sent = size_t{0}](size_t offset, size_t size, httplib::DataSink& sink) mutable {
              const size_t count = std::min({size, cut_every_ - sent, size_t{4096}});
              if (count == 0) return false;
              sink.write(weights_.data() + offset, count);
              sent += count;
              return true;
            });
        return;
      }
      if (ignore_ranges_) {
        // httplib would answer 206 by itself.
        const_cast<httplib::Request&>(request).ranges.clear();
        response.set_content(weights_, "application/octet-stream");
        response.status = 200;
        return;
      }
      EXPECT_LE(begin, weights_.size());
      response.set_content(weights_, "application/octet-stream");
    });
  }

  void CheckToken(const httplib::Request& request, httplib::Response& response) const {
    if (!token_.empty() && request.get_header_value("Authorization") != "Bearer " + token_) {
      response.status = 401;
    }
  }

  HubClient Client(const std::string& token = "") {
    HubOptions options;
    options.endpoint = hub_.origin() + "/";
    options.token = token;
    options.attempts = 3;
    options.first_pause = absl::Milliseconds(1);
    options.timeout = absl::Seconds(5);
    return *HubClient::Create(options);
  }

  HubFile Weights() const {
    return {"model.safetensors", static_cast<int64_t>(weights_.size()), weights_sha256_, ""};
  }

  static constexpr char kConfig[] = "{\"architectures\": [\"LlamaForCausalLM\"]}";
  std::string folder_;
  std::string weights_;
  std::string weights_sha256_;
  std::string config_sha1_;
  const HubAddress tiny_ = {"org/tiny", "main", ""};
  HttpServer hub_;
  HttpServer storage_;
  std::string token_;
  size_t cut_every_ = 0;  // bytes of one answer; 0: whole
  bool ignore_ranges_ = false;
  int fail_with_ = 0;
  std::vector<std::string> requests_;  // Range headers that the storage got
  std::vector<std::string> storage_tokens_;
};

TEST_F(HubClientTest, ListsAllPagesAndNoFileOutsideTheFolder) {
  const absl::StatusOr<std::vector<HubFile>> files = Client().List(tiny_);
  ASSERT_TRUE(files.ok()) << files.status();
  std::vector<std::string> paths;
  for (const HubFile& file : *files) paths.push_back(file.path);
  EXPECT_THAT(paths, ElementsAre("config.json", "README.md", "model.safetensors"));
  EXPECT_EQ(files->at(2).sha256, weights_sha256_);
  EXPECT_EQ(files->at(2).size, static_cast<int64_t>(weights_.size()));
  EXPECT_EQ(files->at(0).git_sha1, config_sha1_);
}

TEST_F(HubClientTest, DownloadsThroughARedirectToAnotherHostWithoutTheToken) {
  token_ = "secret";
  ASSERT_TRUE(Client("secret").Download(tiny_, Weights(), File("w"), nullptr).ok());
  EXPECT_EQ(*config::ReadFile(File("w")), weights_);
  EXPECT_THAT(storage_tokens_, Each(""));
  EXPECT_FALSE(std::filesystem::exists(File("w.part")));
}

TEST_F(HubClientTest, ContinuesAfterEveryBrokenConnection) {
  cut_every_ = 70'000;
  int64_t last = 0;
  const absl::Status status =
      Client().Download(tiny_, Weights(), File("w"), [&](int64_t done, int64_t total) {
        EXPECT_GE(done, last);
        EXPECT_EQ(total, static_cast<int64_t>(weights_.size()));
        last = done;
      });
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(*config::ReadFile(File("w")), weights_);
  ASSERT_GE(requests_.size(), 4u);
  EXPECT_EQ(requests_[0], "");
  EXPECT_EQ(requests_[1], "bytes=70000-");
}

TEST_F(HubClientTest, ContinuesWhatAnEarlierRunLeft) {
  std::ofstream(File("w.part")) << weights_.substr(0, 123'456);
  ASSERT_TRUE(Client().Download(tiny_, Weights(), File("w"), nullptr).ok());
  EXPECT_EQ(*config::ReadFile(File("w")), weights_);
  EXPECT_THAT(requests_, ElementsAre("bytes=123456-"));
}

TEST_F(HubClientTest, AWholePartIsNotFetchedAgain) {
  std::ofstream(File("w.part")) << weights_;
  ASSERT_TRUE(Client().Download(tiny_, Weights(), File("w"), nullptr).ok());
  EXPECT_THAT(requests_, IsEmpty());
}

TEST_F(HubClientTest, AWrongHashIsDataLossAndLeavesNothing) {
  HubFile file = Weights();
  file.sha256[0] = file.sha256[0] == '0' ? '1' : '0';
  const absl::Status status = Client().Download(tiny_, file, File("w"), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(std::filesystem::exists(File("w")));
  EXPECT_FALSE(std::filesystem::exists(File("w.part")));
}

TEST_F(HubClientTest, APartOfAnotherFileIsFoundByTheHash) {
  std::ofstream(File("w.part")) << std::string(1000, 'x');
  EXPECT_EQ(Client().Download(tiny_, Weights(), File("w"), nullptr).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_TRUE(Client().Download(tiny_, Weights(), File("w"), nullptr).ok());
}

TEST_F(HubClientTest, ASmallFileIsCheckedByItsGitHash) {
  HubFile file = {"config.json", -1, "", config_sha1_};
  ASSERT_TRUE(Client().Download(tiny_, file, File("c"), nullptr).ok());
  EXPECT_EQ(*config::ReadFile(File("c")), kConfig);
  file.git_sha1 = std::string(40, '0');
  EXPECT_EQ(Client().Download(tiny_, file, File("d"), nullptr).code(), absl::StatusCode::kDataLoss);
}

TEST_F(HubClientTest, WithoutAListedHashTheHeadersOnesCount) {
  const HubAddress old = {"org/old", "main", "tiny.gguf"};
  const absl::StatusOr<std::vector<HubFile>> files = Client().List(old);
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  ASSERT_TRUE(Client().Download(old, files->at(0), File("w"), nullptr).ok());
  weights_[5] ^= 1;  // the storage now holds something else
  EXPECT_EQ(Client().Download(old, files->at(0), File("v"), nullptr).code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(HubClientTest, AnUnknownRepositoryIsNotFound) {
  EXPECT_EQ(Client().List({"org/none", "main", ""}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HubClientTest, APrivateRepositoryAsksForAToken) {
  token_ = "secret";
  const absl::Status status = Client().List(tiny_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(status.message()), HasSubstr("HF_TOKEN"));
}

TEST_F(HubClientTest, AStorageThatKeepsFailingIsUnavailableAndSaysToGoOn) {
  fail_with_ = 503;
  const absl::Status status = Client().Download(tiny_, Weights(), File("w"), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("goes on where it stopped"));
  EXPECT_EQ(requests_.size(), 3u);
}

TEST_F(HubClientTest, AnUnreachableEndpointIsUnavailable) {
  HubOptions options;
  options.endpoint = "http://127.0.0.1:1";
  const absl::Status status = HubClient::Create(options)->List(tiny_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("HF_ENDPOINT"));
  options.endpoint = "ftp://host";
  EXPECT_EQ(HubClient::Create(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HubClientTest, AWholeModelIsPulledOnceAndRepairedWhenItsFilesChange) {
  const auto quiet = [](const std::string&) {};
  const absl::StatusOr<std::string> path = PullModel(Client(), tiny_, File("cache"), quiet);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_EQ(*path, File("cache/models/org--tiny"));
  EXPECT_EQ(*config::ReadFile(*path + "/model.safetensors"), weights_);
  EXPECT_EQ(*config::ReadFile(*path + "/config.json"), kConfig);
  EXPECT_FALSE(std::filesystem::exists(*path + "/README.md"));
  EXPECT_EQ(requests_.size(), 1u);
  ASSERT_TRUE(PullModel(Client(), tiny_, File("cache"), quiet).ok());
  EXPECT_EQ(requests_.size(), 1u);
  std::ofstream(*path + "/model.safetensors") << "broken";
  ASSERT_TRUE(PullModel(Client(), tiny_, File("cache"), quiet).ok());
  EXPECT_EQ(*config::ReadFile(*path + "/model.safetensors"), weights_);
}

TEST(HubAddressTest, ReadsItsParts) {
  const absl::StatusOr<HubAddress> address = ParseHubAddress("org/name@v1:dir/a.gguf");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->repository, "org/name");
  EXPECT_EQ(address->revision, "v1");
  EXPECT_EQ(address->file, "dir/a.gguf");
  EXPECT_EQ(ParseHubAddress("org/name")->revision, "main");
  for (const char* wrong : {"", "name", "a/b/c", "org/", "../x", "org/name:../x", "org/name@"}) {
    EXPECT_EQ(ParseHubAddress(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

TEST(FilesOfModelTest, ChoosesWhatAModelNeeds) {
  const auto names = [](const HubAddress& address, const std::vector<std::string>& paths) {
    std::vector<HubFile> listing;
    for (const std::string& path : paths) listing.push_back({path, 1, "", ""});
    std::vector<std::string> chosen;
    const absl::StatusOr<std::vector<HubFile>> files = FilesOfModel(address, listing);
    if (!files.ok()) return std::vector<std::string>{std::string(files.status().message())};
    for (const HubFile& file : *files) chosen.push_back(file.path);
    return chosen;
  };
  EXPECT_THAT(names({"o/n", "main", ""}, {"config.json", "model-00001-of-00002.safetensors",
                                          "consolidated.safetensors", "onnx/model.safetensors"}),
              ElementsAre("config.json", "model-00001-of-00002.safetensors"));
  EXPECT_THAT(names({"o/n", "main", ""}, {"README.md", "a.gguf"}), ElementsAre("a.gguf"));
  EXPECT_THAT(names({"o/n", "main", "b.gguf"}, {"a.gguf", "b.gguf"}), ElementsAre("b.gguf"));
  EXPECT_THAT(names({"o/n", "main", ""}, {"a.gguf", "b.gguf"}),
              ElementsAre(HasSubstr("o/n:a.gguf")));
  EXPECT_THAT(names({"o/n", "main", "c.gguf"}, {"a.gguf"}), ElementsAre(HasSubstr("no such file")));
  EXPECT_THAT(names({"o/n", "main", ""}, {"README.md"}), ElementsAre(HasSubstr("neither")));
}

}  // namespace
}  // namespace mneme::cli
