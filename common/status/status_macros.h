// Errors travel as absl::Status and absl::StatusOr; these two macros pass them up.
//
//   ASSIGN_OR_RETURN(const Model* model, registry.Find(name));
//   RETURN_IF_ERROR(file.Close());
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MNEME_STATUS_CONCAT_INNER(x, y) x##y
#define MNEME_STATUS_CONCAT(x, y) MNEME_STATUS_CONCAT_INNER(x, y)

#define RETURN_IF_ERROR(expression)                                                        \
  do {                                                                                     \
    if (absl::Status mneme_status = (expression); !mneme_status.ok()) return mneme_status; \
  } while (false)

#define ASSIGN_OR_RETURN(declaration, expression)                                           \
  MNEME_ASSIGN_OR_RETURN_IMPL(MNEME_STATUS_CONCAT(mneme_status_or_, __LINE__), declaration, \
                              expression)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses.
#define MNEME_ASSIGN_OR_RETURN_IMPL(status_or, declaration, expression) \
  auto status_or = (expression);                                        \
  if (!status_or.ok()) return std::move(status_or).status();            \
  declaration = *std::move(status_or)
// NOLINTEND(bugprone-macro-parentheses)
