// The C ABI of the Rust library in this folder: Hugging Face tokenizers and Jinja templates.
//
// Every fallible call returns 0 or an absl::StatusCode and then sets `error`, which the caller
// frees. What is returned by pointer is freed by the matching function. Objects are immutable:
// calls on one object may run at the same time. Used by ffi_handle.cc only.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mneme_text_bytes {
  uint8_t* data;
  size_t size;
} mneme_text_bytes;

typedef struct mneme_text_ids {
  uint32_t* data;
  size_t size;
} mneme_text_ids;

typedef struct mneme_text_tokenizer mneme_text_tokenizer;
typedef struct mneme_text_template mneme_text_template;

// Silences the library's panic messages, which may quote a caller's text. Call once.
void mneme_text_initialize(void);

void mneme_text_bytes_free(mneme_text_bytes bytes);
void mneme_text_ids_free(mneme_text_ids ids);

// `json` is a tokenizer.json.
int32_t mneme_text_tokenizer_create(const uint8_t* json, size_t json_size,
                                    mneme_text_tokenizer** out, mneme_text_bytes* error);
void mneme_text_tokenizer_destroy(mneme_text_tokenizer* tokenizer);
int32_t mneme_text_tokenizer_encode(const mneme_text_tokenizer* tokenizer, const uint8_t* data,
                                    size_t size, bool add_special_tokens, bool plain_text,
                                    mneme_text_ids* out, mneme_text_bytes* error);
int32_t mneme_text_tokenizer_decode(const mneme_text_tokenizer* tokenizer, const uint32_t* ids,
                                    size_t size, bool skip_special_tokens, mneme_text_bytes* out,
                                    mneme_text_bytes* error);
// `description` is JSON: size, special_ids, decoder (as in tokenizer.json). `tokens` holds for
// every id a little-endian uint32 length and the token's text; 2^32 - 1 for an id that does not
// exist.
int32_t mneme_text_tokenizer_describe(const mneme_text_tokenizer* tokenizer,
                                      mneme_text_bytes* description, mneme_text_bytes* tokens,
                                      mneme_text_bytes* error);

int32_t mneme_text_template_create(const uint8_t* source, size_t size, mneme_text_template** out,
                                   mneme_text_bytes* error);
void mneme_text_template_destroy(mneme_text_template* chat_template);
// `context` is a JSON object of variables. A message of raise_exception arrives verbatim.
int32_t mneme_text_template_render(const mneme_text_template* chat_template, const uint8_t* context,
                                   size_t size, int64_t now_unix_seconds, size_t max_output_bytes,
                                   mneme_text_bytes* out, mneme_text_bytes* error);

#ifdef __cplusplus
}
#endif
