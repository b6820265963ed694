#include "services/gateway/json_fields.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/text/utf8.h"

namespace mneme::gateway {
namespace {

constexpr int kMaxDepth = 64;

// Refuses deep nesting before the parser builds it.
bool IsTooDeep(absl::string_view body) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < body.size(); ++i) {
    const char c = body[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// Takes everything and only remembers where the text stops being JSON.
class ErrorPosition final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return true; }
  bool key(string_t&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    position_ = position;
    return false;
  }
  size_t position() const { return position_; }

 private:
  size_t position_ = 0;
};

}  // namespace

absl::StatusOr<Json> ParseObject(absl::string_view body) {
  if (const size_t at = text::FindInvalidUtf8(body); at != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body is not valid UTF-8, first at byte ", at));
  }
  if (IsTooDeep(body)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body's JSON is nested deeper than ", kMaxDepth, " levels"));
  }
  Json json = Json::parse(body.begin(), body.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    ErrorPosition error;
    Json::sax_parse(body.begin(), body.end(), &error);
    return absl::InvalidArgumentError(
        absl::StrCat("the body is not valid JSON, at byte ", error.position()));
  }
  if (!json.is_object()) return absl::InvalidArgumentError("the body must be a JSON object");
  return json;
}

const Json* JsonFields::Find(const char* name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void JsonFields::Fail(const std::string& name, absl::string_view message) {
  if (status_.ok()) status_ = status::InvalidField(path_ + name, message);
}

std::optional<double> JsonFields::Number(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Fail(name, "must be a number");
    return std::nullopt;
  }
  return value->get<double>();
}

std::optional<int64_t> JsonFields::Integer(const char* name, int64_t lowest, int64_t highest) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : 0.5;
  if (number != std::floor(number)) {
    Fail(name, "must be a whole number");
    return std::nullopt;
  }
  if (!(number >= static_cast<double>(lowest) && number <= static_cast<double>(highest))) {
    Fail(name, absl::StrCat("must lie between ", lowest, " and ", highest));
    return std::nullopt;
  }
  return value->is_number_float() ? static_cast<int64_t>(number) : value->get<int64_t>();
}

std::optional<uint64_t> JsonFields::Seed(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) {
    Fail(name, "must be a whole number");
    return std::nullopt;
  }
  // A negative one is as good as any other 64 bits.
  return value->is_number_unsigned() ? value->get<uint64_t>()
                                     : static_cast<uint64_t>(value->get<int64_t>());
}

std::optional<bool> JsonFields::Bool(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(name, "must be true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<std::string> JsonFields::String(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, "must be a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

const Json* JsonFields::Array(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (value->is_array()) return value;
  Fail(name, "must be a list");
  return nullptr;
}

const Json* JsonFields::Object(const char* name) {
  const Json* value = Find(name);
  if (value == nullptr) return nullptr;
  if (value->is_object()) return value;
  Fail(name, "must be an object");
  return nullptr;
}

}  // namespace mneme::gateway
