// Errors as OpenAI's clients read them: a status code and {"error":{message,type,param,code}}.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace mneme::gateway {

struct HttpError {
  int status = 500;
  std::string body;         // one line of JSON
  std::string retry_after;  // whole seconds for the header; "" for none
};

HttpError ToHttpError(const absl::Status& status);

// The same for what has no absl code: 405, 413, 415.
HttpError MakeHttpError(int status, const std::string& message, const std::string& type,
                        const std::string& code);

}  // namespace mneme::gateway
