//! The C boundary of `text_ffi.h`: every function returns a status code (absl's numbers) and, where
//! it is not 0, an owned message. Strings cross as pointer and length. No panic crosses: it becomes
//! an INTERNAL error without its message, which might quote the caller's text.

mod python;
mod template;
mod tokenizer;

use std::panic::{catch_unwind, AssertUnwindSafe};

use template::Template;
use tokenizer::Tokenizer;

/// absl::StatusCode.
const INVALID_ARGUMENT: i32 = 3;
const INTERNAL: i32 = 13;

/// A failed call: its status code and message.
pub struct Failure {
    code: i32,
    message: String,
}

impl Failure {
    pub fn invalid(message: impl Into<String>) -> Self {
        Failure { code: INVALID_ARGUMENT, message: message.into() }
    }
}

/// `mneme_text_bytes`: owned by the caller until `mneme_text_bytes_free`.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
}

/// `mneme_text_ids`: owned by the caller until `mneme_text_ids_free`.
#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let boxed = bytes.into_boxed_slice();
        Bytes { size: boxed.len(), data: Box::into_raw(boxed) as *mut u8 }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Self {
        let boxed = ids.into_boxed_slice();
        Ids { size: boxed.len(), data: Box::into_raw(boxed) as *mut u32 }
    }
}

/// # Safety
/// `data` points to `size` bytes, or `size` is 0.
unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// # Safety
/// As for `slice`.
unsafe fn text<'a>(data: *const u8, size: usize) -> Result<&'a str, Failure> {
    std::str::from_utf8(slice(data, size)).map_err(|error| {
        Failure::invalid(format!("text is not valid UTF-8 at byte {}", error.valid_up_to()))
    })
}

/// Runs `body` and turns its failure or panic into a status code and an owned message.
fn guarded(error: *mut Bytes, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(_) => {
            Failure { code: INTERNAL, message: "a text library panicked on this input".to_string() }
        }
    };
    // SAFETY: callers pass a valid pointer for the message.
    unsafe { *error = failure.message.into_bytes().into() };
    failure.code
}

/// Keeps panic messages, which may quote a caller's text, off the standard error.
#[no_mangle]
pub extern "C" fn mneme_text_initialize() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// # Safety
/// `bytes` came from this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_bytes_free(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.data, bytes.size)));
    }
}

/// # Safety
/// `ids` came from this library and is not used again.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_ids_free(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}

/// # Safety
/// All pointers are valid; `json` has `json_size` bytes.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_tokenizer_create(
    json: *const u8,
    json_size: usize,
    out: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let tokenizer = Tokenizer::from_json(slice(json, json_size))?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` came from `mneme_text_tokenizer_create` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_tokenizer_destroy(tokenizer: *mut Tokenizer) {
    drop(Box::from_raw(tokenizer));
}

/// # Safety
/// All pointers are valid; `data` has `size` bytes.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_tokenizer_encode(
    tokenizer: *const Tokenizer,
    data: *const u8,
    size: usize,
    add_special_tokens: bool,
    plain_text: bool,
    out: *mut Ids,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let ids = (*tokenizer).encode(text(data, size)?, add_special_tokens, plain_text)?;
        *out = ids.into();
        Ok(())
    })
}

/// # Safety
/// All pointers are valid; `ids` has `size` ids.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    size: usize,
    skip_special_tokens: bool,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let decoded = (*tokenizer).decode(slice(ids, size), skip_special_tokens)?;
        *out = decoded.into_bytes().into();
        Ok(())
    })
}

/// # Safety
/// All pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_tokenizer_describe(
    tokenizer: *const Tokenizer,
    description: *mut Bytes,
    tokens: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let json = (*tokenizer).describe()?;
        *tokens = (*tokenizer).tokens().into();
        *description = json.into_bytes().into();
        Ok(())
    })
}

/// # Safety
/// All pointers are valid; `source` has `size` bytes.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_template_create(
    source: *const u8,
    size: usize,
    out: *mut *mut Template,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let template = Template::compile(text(source, size)?)?;
        *out = Box::into_raw(Box::new(template));
        Ok(())
    })
}

/// # Safety
/// `template` came from `mneme_text_template_create` and is not used again.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_template_destroy(template: *mut Template) {
    drop(Box::from_raw(template));
}

/// # Safety
/// All pointers are valid; `context` has `size` bytes.
#[no_mangle]
pub unsafe extern "C" fn mneme_text_template_render(
    template: *const Template,
    context: *const u8,
    size: usize,
    now_unix_seconds: i64,
    max_output_bytes: usize,
    out: *mut Bytes,
    error: *mut Bytes,
) -> i32 {
    guarded(error, || {
        let rendered =
            (*template).render(text(context, size)?, now_unix_seconds, max_output_bytes)?;
        *out = rendered.into();
        Ok(())
    })
}
