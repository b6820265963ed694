// A conversation as training files, evaluation files and chat templates know it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace mneme::dataset {

enum class Role { kUser, kAssistant };

struct Turn {
  Role role = Role::kUser;
  std::string content;  // UTF-8
};

struct Conversation {
  // Goes before the first turn. Empty or absent: none; `qwen` then writes an empty one, or its own
  // default.
  std::optional<std::string> system;
  std::vector<Turn> turns;
  // Ends the text with the opening of an assistant's turn, to be gone on from.
  bool add_generation_prompt = false;
};

}  // namespace mneme::dataset
