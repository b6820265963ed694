#include "common/benchmarks/prompts.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/benchmarks/infinite_bench.h"
#include "common/benchmarks/long_bench.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"

namespace mneme::benchmarks {
namespace {

using nlohmann::json;

// One object of the file: reads its fields and names the first that is not what it should be.
class Fields {
 public:
  // `where` is what messages call the object.
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail("", "must be an object");
  }

  std::string Text(const char* name) {
    const json* const field = Find(name, /*is_required=*/true);
    if (field == nullptr) return "";
    if (const auto* const text = field->get_ptr<const std::string*>()) return *text;
    Fail(name, "must be text");
    return "";
  }

  std::string TextOr(const char* name, std::string absent) {
    return Find(name, /*is_required=*/false) == nullptr ? std::move(absent) : Text(name);
  }

  int64_t Count(const char* name) {
    const json* const field = Find(name, /*is_required=*/true);
    if (field == nullptr) return 0;
    const int64_t value = field->is_number_integer() ? field->get<int64_t>() : 0;
    if (value < 1) Fail(name, "must be a whole number above 0");
    return value;
  }

  bool FlagOr(const char* name, bool absent) {
    const json* const field = Find(name, /*is_required=*/false);
    if (field == nullptr) return absent;
    if (field->is_boolean()) return field->get<bool>();
    Fail(name, "must be true or false");
    return absent;
  }

  PromptTemplate Template(const char* name, absl::Span<const absl::string_view> places) {
    absl::StatusOr<PromptTemplate> parsed = PromptTemplate::Parse(Text(name), places);
    if (parsed.ok()) return *std::move(parsed);
    Fail(name, parsed.status().message());
    return PromptTemplate();
  }

  const json& Value(const char* name) {
    const json* const field = Find(name, /*is_required=*/true);
    return field == nullptr ? nothing_ : *field;
  }

  // What was wrong with the fields read, or that the object has others.
  absl::Status Finish() {
    if (!status_.ok()) return status_;
    for (const auto& [name, value] : object_.items()) {
      if (!read_.contains(name)) return Wrong(name, "is not a field of this file");
    }
    return absl::OkStatus();
  }

 private:
  const json* Find(const char* name, bool is_required) {
    read_.insert(name);
    const auto found = object_.find(name);
    if (found != object_.end()) return &*found;
    if (is_required) Fail(name, "is missing");
    return nullptr;
  }

  absl::Status Wrong(absl::string_view name, absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(where_, name.empty() || where_.empty() ? "" : ".", name, " ", what));
  }

  void Fail(absl::string_view name, absl::string_view what) { status_.Update(Wrong(name, what)); }

  const json& object_;
  const json nothing_;
  const std::string where_;
  std::set<std::string> read_;
  absl::Status status_;
};

absl::StatusOr<std::vector<TaskPrompt>> ParseTasks(const json& list, const std::string& where,
                                                   absl::Span<const absl::string_view> places) {
  if (!list.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " must be a list of tasks"));
  }
  std::vector<TaskPrompt> tasks;
  std::set<std::string> names;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields fields(list[i], absl::StrCat(where, "[", i, "]"));
    TaskPrompt task;
    task.task = fields.Text("task");
    task.prompt = fields.Template("template", places);
    task.max_new_tokens = fields.Count("max_new_tokens");
    task.metric = fields.Text("metric");
    task.category = fields.TextOr("category", "");
    task.chat = fields.FlagOr("chat", true);
    task.newline_as_eos = fields.FlagOr("newline_as_eos", false);
    RETURN_IF_ERROR(fields.Finish());
    if (!names.insert(task.task).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " has a task twice, leave one out: ", task.task));
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

absl::StatusOr<const TaskPrompt*> FindTask(const std::vector<TaskPrompt>& tasks,
                                           absl::string_view suite, absl::string_view task) {
  const auto found = std::find_if(tasks.begin(), tasks.end(),
                                  [task](const TaskPrompt& one) { return one.task == task; });
  if (found != tasks.end()) return &*found;
  return absl::NotFoundError(absl::StrCat(
      suite, " has no such task, it has ",
      absl::StrJoin(tasks, ", ",
                    [](std::string* out, const TaskPrompt& one) { out->append(one.task); }),
      ": \"", task, "\""));
}

}  // namespace

absl::StatusOr<Prompts> Prompts::Parse(absl::string_view json_text) {
  const json file = json::parse(json_text.begin(), json_text.end(), nullptr,
                                /*allow_exceptions=*/false);
  if (!file.is_object()) {
    return absl::InvalidArgumentError("the file of prompts is not a JSON object in UTF-8");
  }
  Prompts prompts;
  Fields fields(file, "");
  fields.Value("source");
  const json& long_bench = fields.Value("longbench");
  const json& sets = fields.Value("infinitebench");
  Fields passkey(fields.Value("passkey"), "passkey");
  Fields needle(fields.Value("needle"), "needle");
  RETURN_IF_ERROR(fields.Finish());

  ASSIGN_OR_RETURN(prompts.long_bench_, ParseTasks(long_bench, "longbench", kLongBenchPlaces));
  if (!sets.is_object()) {
    return absl::InvalidArgumentError("infinitebench must be an object of prompt sets");
  }
  for (const auto& [name, tasks] : sets.items()) {
    ASSIGN_OR_RETURN(prompts.infinite_bench_[name],
                     ParseTasks(tasks, absl::StrCat("infinitebench.", name), kInfiniteBenchPlaces));
  }
  prompts.passkey_ = {.instruction = passkey.Text("instruction"),
                      .filler = passkey.Text("filler"),
                      .fact = passkey.Template("fact", {"passkey"}),
                      .question = passkey.Text("question"),
                      .max_new_tokens = passkey.Count("max_new_tokens")};
  RETURN_IF_ERROR(passkey.Finish());
  prompts.needle_ = {.instruction = needle.Text("instruction"),
                     .needle = needle.Text("needle"),
                     .question = needle.Text("question"),
                     .max_new_tokens = needle.Count("max_new_tokens")};
  RETURN_IF_ERROR(needle.Finish());
  return prompts;
}

absl::StatusOr<const TaskPrompt*> Prompts::LongBench(absl::string_view task) const {
  return FindTask(long_bench_, "LongBench", task);
}

absl::StatusOr<const TaskPrompt*> Prompts::InfiniteBench(absl::string_view prompt_set,
                                                         absl::string_view task) const {
  const auto found = infinite_bench_.find(std::string(prompt_set));
  if (found == infinite_bench_.end()) {
    return absl::NotFoundError(absl::StrCat(
        "InfiniteBench has no such prompt set, it has ",
        absl::StrJoin(infinite_bench_, ", ",
                      [](std::string* out, const auto& set) { out->append(set.first); }),
        ": \"", prompt_set, "\""));
  }
  return FindTask(found->second, "InfiniteBench", task);
}

}  // namespace mneme::benchmarks
