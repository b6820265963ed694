#include "common/dataset/chat_template.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/dataset/answer_labels.h"
#include "common/status/status_macros.h"

namespace mneme::dataset {
namespace {

constexpr TurnMarks kMistralMarks = {"</s>", " [/INST]", 1, 0};
constexpr TurnMarks kLlama2Marks = {" </s><s>", " [/INST]", 1, -1};
constexpr TurnMarks kLlama3Marks = {"<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
                                    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                                    1, -4};
constexpr TurnMarks kQwenMarks = {"<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", 0,
                                  -4};

constexpr absl::string_view kQwenSystem = "You are a helpful assistant.";

absl::string_view RoleName(Role role) { return role == Role::kUser ? "user" : "assistant"; }

// Returns the turns from the first user's on, where their order is one that templates can write.
absl::StatusOr<absl::Span<const Turn>> CheckedTurns(const Conversation& conversation) {
  absl::Span<const Turn> turns = conversation.turns;
  if (!turns.empty() && turns.front().role != Role::kUser) turns.remove_prefix(1);
  if (turns.empty()) {
    return absl::InvalidArgumentError(
        "a conversation needs a turn of the user's: put one before the assistant's");
  }
  Role previous = Role::kAssistant;
  for (size_t i = 0; i < turns.size(); ++i) {
    if (turns[i].role == previous) {
      return absl::InvalidArgumentError(
          absl::StrCat("turns of user and assistant must alternate, beginning with the user's: "
                       "join the two turns in a row of role ",
                       RoleName(previous)));
    }
    previous = turns[i].role;
  }
  if (conversation.add_generation_prompt && previous == Role::kAssistant) {
    return absl::InvalidArgumentError(
        "a generation prompt opens an answer, but the last turn is one: end with a turn of the "
        "user's or ask for no generation prompt");
  }
  return turns;
}

// [INST] U [/INST] A, and what ends an answer.
std::string RenderInstructions(absl::Span<const Turn> turns, absl::string_view system,
                               absl::string_view answer_end, bool add_generation_prompt) {
  std::string text;
  for (const Turn& turn : turns) {
    if (turn.role == Role::kUser) {
      absl::StrAppend(&text, "[INST] ", system, turn.content, " ");
      system = "";
    } else {
      absl::StrAppend(&text, "[/INST] ", turn.content, answer_end);
    }
  }
  if (add_generation_prompt) text += "[/INST]";
  return text;
}

std::string Llama3Header(absl::string_view role) {
  return absl::StrCat("<|start_header_id|>", role, "<|end_header_id|>\n\n");
}

std::string RenderLlama3(absl::Span<const Turn> turns, absl::string_view system,
                         bool add_generation_prompt) {
  constexpr absl::string_view kEnd = "<|eot_id|>";
  std::string text;
  if (!system.empty()) absl::StrAppend(&text, Llama3Header("system"), system, kEnd);
  for (const Turn& turn : turns) {
    absl::StrAppend(&text, Llama3Header(RoleName(turn.role)), turn.content, kEnd);
  }
  if (add_generation_prompt) text += Llama3Header("assistant");
  return text;
}

std::string RenderQwen(absl::Span<const Turn> turns, absl::string_view system,
                       bool add_generation_prompt) {
  constexpr absl::string_view kStart = "<|im_start|>";
  constexpr absl::string_view kEnd = "<|im_end|>\n";
  std::string text = absl::StrCat(kStart, "system\n", system, kEnd);
  for (const Turn& turn : turns) {
    absl::StrAppend(&text, kStart, RoleName(turn.role), "\n", turn.content, kEnd);
  }
  if (add_generation_prompt) absl::StrAppend(&text, kStart, "assistant\n");
  return text;
}

// What the template `no` writes of an answer: after a space, and for the count of its labels.
std::string PlainAnswer(absl::Span<const Turn> turns, const TextEncoder& encoder) {
  return turns.size() < 2 ? "" : absl::StrCat(turns[1].content, encoder.eos_text());
}

absl::StatusOr<std::string> RenderPlain(absl::Span<const Turn> turns, absl::string_view system,
                                        const TextEncoder& encoder) {
  if (!system.empty()) {
    return absl::InvalidArgumentError(
        "the template \"no\" has no place for a system message: put it into the user's text");
  }
  if (turns.size() > 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("the template \"no\" takes one exchange at most; use mistral, llama-2, "
                     "llama-3 or qwen for more turns: ",
                     turns.size()));
  }
  std::string text = turns[0].content;
  if (turns.size() == 2) absl::StrAppend(&text, " ", PlainAnswer(turns, encoder));
  return text;
}

const TurnMarks& MarksOf(TemplateName name) {
  switch (name) {
    case TemplateName::kLlama2:
      return kLlama2Marks;
    case TemplateName::kLlama3:
      return kLlama3Marks;
    case TemplateName::kQwen:
      return kQwenMarks;
    default:
      return kMistralMarks;
  }
}

}  // namespace

absl::StatusOr<TemplateName> ParseTemplateName(absl::string_view name) {
  if (name == "hf") return TemplateName::kHf;
  if (name == "no") return TemplateName::kNo;
  if (name == "mistral") return TemplateName::kMistral;
  if (name == "llama-2") return TemplateName::kLlama2;
  if (name == "llama-3") return TemplateName::kLlama3;
  if (name == "qwen") return TemplateName::kQwen;
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown chat template, use hf, no, mistral, llama-2, llama-3 or qwen: \"", name, "\""));
}

absl::StatusOr<std::string> RenderConversation(TemplateName name, const Conversation& conversation,
                                               const TextEncoder& encoder) {
  ASSIGN_OR_RETURN(const absl::Span<const Turn> turns, CheckedTurns(conversation));
  const std::string system = conversation.system.value_or("");
  const bool opens_answer = conversation.add_generation_prompt;
  switch (name) {
    case TemplateName::kHf: {
      Conversation checked = conversation;
      checked.turns.assign(turns.begin(), turns.end());
      return encoder.RenderOwnTemplate(checked);
    }
    case TemplateName::kNo:
      return RenderPlain(turns, system, encoder);
    case TemplateName::kMistral:
      return RenderInstructions(turns, system.empty() ? "" : absl::StrCat(system, "\n"), "</s>",
                                opens_answer);
    case TemplateName::kLlama2:
      return RenderInstructions(
          turns, system.empty() ? "" : absl::StrCat("<<SYS>>\n", system, "\n<</SYS>>\n\n"),
          " </s><s>", opens_answer);
    case TemplateName::kLlama3:
      return RenderLlama3(turns, system, opens_answer);
    case TemplateName::kQwen:
      return RenderQwen(turns, conversation.system.has_value() ? system : kQwenSystem,
                        opens_answer);
  }
  return absl::InternalError("no such chat template");
}

absl::StatusOr<EncodedConversation> EncodeConversation(TemplateName name,
                                                       const Conversation& conversation,
                                                       const TextEncoder& encoder,
                                                       bool with_labels) {
  if (with_labels && name == TemplateName::kHf) {
    return absl::InvalidArgumentError(
        "the template \"hf\" has no rule for labels: train with no, mistral, llama-2, llama-3 or "
        "qwen");
  }
  EncodedConversation encoded;
  ASSIGN_OR_RETURN(encoded.text, RenderConversation(name, conversation, encoder));
  // A tokenizer's own template writes bos itself.
  ASSIGN_OR_RETURN(encoded.input_ids, encoder.Encode(encoded.text, name != TemplateName::kHf));
  if (!with_labels) return encoded;
  if (name == TemplateName::kNo) {
    ASSIGN_OR_RETURN(const absl::Span<const Turn> turns, CheckedTurns(conversation));
    ASSIGN_OR_RETURN(encoded.labels,
                     LastTokensLabels(PlainAnswer(turns, encoder), encoded.input_ids, encoder));
  } else {
    ASSIGN_OR_RETURN(encoded.labels,
                     AnswerLabels(MarksOf(name), encoded.text, encoded.input_ids, encoder));
  }
  return encoded;
}

}  // namespace mneme::dataset
