#include "common/weights/strict_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status/status_macros.h"
#include "common/weights/mapped_file.h"

namespace mneme::weights {
namespace {

using nlohmann::json;

// Builds the document from the parser's events; a handler that returns false ends the parse.
class Builder : public nlohmann::json_sax<json> {
 public:
  explicit Builder(int max_depth) : max_depth_(static_cast<size_t>(max_depth)) {}

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(int64_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return Add(value) != nullptr; }
  bool number_float(double value, const std::string&) override { return Add(value) != nullptr; }
  bool string(std::string& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(json::binary_t&) override { return false; }
  bool start_object(size_t) override { return Push(json::object()); }
  bool start_array(size_t) override { return Push(json::array()); }
  bool end_object() override { return Pop(); }
  bool end_array() override { return Pop(); }

  bool key(std::string& value) override {
    if (stack_.back()->contains(value)) {
      error_ =
          absl::StrCat("key '", absl::Utf8SafeCEscape(value.substr(0, 200)), "' appears twice");
      return false;
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    error_ = absl::StrCat("not valid JSON at byte ", position);
    return false;
  }

  absl::StatusOr<json> Take() && {
    if (!error_.empty()) return absl::InvalidArgumentError(error_);
    return std::move(root_);
  }

 private:
  json* Add(json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    json& slot = parent[key_];
    slot = std::move(value);
    return &slot;
  }

  bool Push(json value) {
    if (stack_.size() >= max_depth_) {
      error_ = absl::StrCat("JSON nested more than ", max_depth_, " deep");
      return false;
    }
    // The pointer stays good: a parent gets no other child while this one is open.
    stack_.push_back(Add(std::move(value)));
    return true;
  }

  bool Pop() {
    stack_.pop_back();
    return true;
  }

  const size_t max_depth_;
  json root_;
  std::vector<json*> stack_;
  std::string key_;
  std::string error_;
};

}  // namespace

absl::StatusOr<json> ParseStrictJson(absl::string_view text, int max_depth) {
  Builder builder(max_depth);
  json::sax_parse(text.data(), text.data() + text.size(), &builder);
  return std::move(builder).Take();
}

absl::StatusOr<std::string> ReadTextFile(absl::string_view path, uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = file.bytes();
  if (bytes.size() > max_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("file is over the bound of ", max_bytes,
                                                   " bytes: ", path, " has ", bytes.size()));
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

}  // namespace mneme::weights
