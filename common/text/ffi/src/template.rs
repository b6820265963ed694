//! Chat templates: the Jinja dialect that transformers renders, with Python's own text for values.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;

use minijinja::value::{from_args, Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use crate::python::{self, JsonStyle, Tuple};
use crate::Failure;

/// Instructions that one rendering may take: a loop in a template must end. A conversation of a
/// thousand messages takes some hundred thousand.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

thread_local! {
    /// The message of raise_exception, verbatim: the engine wraps errors on their way out.
    static RAISED: RefCell<Option<String>> = const { RefCell::new(None) };
    static NOW: Cell<i64> = const { Cell::new(0) };
}

pub struct Template {
    environment: Environment<'static>,
}

/// Counts what is written and refuses to go over the limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other("output is over the limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Template {
    pub fn compile(source: &str) -> Result<Self, Failure> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(call_method);
        environment.set_formatter(|out, _, value| {
            match value.as_str() {
                Some(text) => out.write_str(text),
                None => out.write_str(&python::str(value)?),
            }
            .map_err(Error::from)
        });
        add_functions(&mut environment);
        add_filters(&mut environment);
        add_tests(&mut environment);
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        environment
            .add_template_owned(NAME, replace_generation_tags(&source))
            .map_err(|error| Failure::invalid(format!("chat template is not valid: {error}")))?;
        Ok(Template { environment })
    }

    pub fn render(
        &self,
        context: &str,
        now_unix_seconds: i64,
        max_output_bytes: usize,
    ) -> Result<Vec<u8>, Failure> {
        let context: serde_json::Value = serde_json::from_str(context).map_err(|error| {
            Failure::invalid(format!("template arguments are not valid JSON: {error}"))
        })?;
        RAISED.with(|raised| raised.replace(None));
        NOW.with(|now| now.set(now_unix_seconds));
        let mut output = BoundedOutput { bytes: Vec::new(), limit: max_output_bytes };
        let result = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(|_| ()));
        match result {
            Ok(()) => Ok(output.bytes),
            Err(error) => Err(Failure::invalid(
                RAISED.with(|raised| raised.take()).unwrap_or_else(|| describe(&error)),
            )),
        }
    }
}

/// The first error of the chain with its line, without the values around it.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "chat template takes too many steps".to_string();
    }
    format!("chat template failed: {error}")
}

/// `{% generation %}` marks the assistant's words for training; rendering only needs its scope.
fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}"),
            Some(b'%') => tag.find("%}"),
            _ => None,
        };
        let Some(end) = end else {
            out.push('{');
            rest = &tag[1..];
            continue;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = &tag[2..end];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        if tag.starts_with("{%") && (word == "generation" || word == "endgeneration") {
            let replacement = if word == "generation" { "with" } else { "endwith" };
            out.push_str(&tag.replacen(word, replacement, 1));
        } else {
            out.push_str(tag);
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::str(message)?;
    RAISED.with(|raised| raised.replace(Some(message.clone())));
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `datetime.now().strftime(format)`, the time being the caller's.
fn strftime_now(format: &str) -> Result<Value, Error> {
    let invalid = || Error::new(ErrorKind::InvalidOperation, "strftime_now: format is not usable");
    let c_format = CString::new(format).map_err(|_| invalid())?;
    let seconds: libc::time_t = NOW.with(|now| now.get());
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    let mut buffer = [0u8; 1024];
    // SAFETY: localtime_r fills `parts`; strftime writes at most the buffer's size.
    let size = unsafe {
        if libc::localtime_r(&seconds, parts.as_mut_ptr()).is_null() {
            return Err(invalid());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr(), parts.as_ptr())
    };
    if size == 0 && !format.is_empty() {
        return Err(invalid());
    }
    Ok(Value::from(String::from_utf8_lossy(&buffer[..size]).into_owned()))
}

fn add_functions(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", |message: Value| raise_exception(&message));
    environment.add_function("strftime_now", |format: &str| strftime_now(format));
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, positional: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok(given.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match argument(1, "indent")? {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(i64::try_from(value)?.clamp(0, 64) as usize),
        }),
    };
    let (item_separator, key_separator) = match argument(2, "separators")? {
        Some(pair) => (
            python::str(&pair.get_item(&Value::from(0))?)?,
            python::str(&pair.get_item(&Value::from(1))?)?,
        ),
        None if indent.is_some() => (",".to_string(), ": ".to_string()),
        None => (", ".to_string(), ": ".to_string()),
    };
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

fn strip<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let is_stripped =
        |c: char| chars.map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(is_stripped) } else { text };
    if end {
        text.trim_end_matches(is_stripped)
    } else {
        text
    }
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        _ => value.len().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("object of type {} has no len()", value.kind()),
            )
        }),
    }
}

fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => value.as_str()?.trim().replace('_', "").parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).ok(),
    }
}

/// As Jinja2's `int`: a text may also be a decimal fraction.
fn to_int(value: &Value) -> Option<i64> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str()?.trim().replace('_', "");
            text.parse().ok().or_else(|| truncate(text.parse().ok()?))
        }
        ValueKind::Number if value.is_integer() => value.as_i64(),
        _ => truncate(to_float(value)?),
    }
}

fn truncate(value: f64) -> Option<i64> {
    value.is_finite().then_some(value.trunc() as i64)
}

fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", |value: Value, positional: Rest<Value>, named: Kwargs| {
        to_json(&value, &positional, &named)
    });
    environment.add_filter("items", |value: Value| match value.kind() {
        ValueKind::Map => python::items(&value),
        ValueKind::Undefined => Ok(Value::from_iter(std::iter::empty::<Value>())),
        _ => {
            Err(Error::new(ErrorKind::InvalidOperation, "Can only get item pairs from a mapping."))
        }
    });
    environment.add_filter("int", |value: Value, default: Option<Value>| {
        to_int(&value).map_or_else(|| default.unwrap_or(Value::from(0)), Value::from)
    });
    environment.add_filter("float", |value: Value, default: Option<Value>| {
        to_float(&value).map_or_else(|| default.unwrap_or(Value::from(0.0)), Value::from)
    });
    environment.add_filter("string", |value: Value| python::str(&value));
    environment.add_filter("length", |value: Value| length(&value));
    environment.add_filter("count", |value: Value| length(&value));
    environment.add_filter("trim", |value: Value, chars: Option<&str>| {
        python::str(&value).map(|text| strip(&text, chars, true, true).to_string())
    });
    environment.add_filter(
        "join",
        |value: Value, separator: Option<Value>, named: Kwargs| -> Result<String, Error> {
            let separator = match separator {
                Some(separator) => python::str(&separator)?,
                None => named.get::<Option<String>>("d")?.unwrap_or_default(),
            };
            let attribute = named.get::<Option<String>>("attribute")?;
            named.assert_all_used()?;
            if value.is_undefined() {
                return Ok(String::new());
            }
            let parts: Vec<String> = value
                .try_iter()?
                .map(|item| match &attribute {
                    Some(name) => {
                        let mut item = item;
                        for part in name.split('.') {
                            item = item.get_attr(part)?;
                        }
                        python::str(&item)
                    }
                    None => python::str(&item),
                })
                .collect::<Result<_, _>>()?;
            Ok(parts.join(&separator))
        },
    );
}

/// Python's classes: a str, list, dict and Undefined all have a length and items; True is a number.
fn add_tests(environment: &mut Environment<'static>) {
    environment.add_test("sequence", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: Value| {
        matches!(
            value.kind(),
            ValueKind::String
                | ValueKind::Seq
                | ValueKind::Map
                | ValueKind::Iterable
                | ValueKind::Undefined
        )
    });
    environment.add_test("number", |value: Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("integer", |value: Value| {
        value.kind() == ValueKind::Number && value.is_integer()
    });
    environment
        .add_test("float", |value: Value| value.kind() == ValueKind::Number && !value.is_integer());
}

/// The number of characters before a byte offset, -1 for none: Python counts in characters.
fn character_index(text: &str, offset: Option<usize>) -> i64 {
    offset.map_or(-1, |offset| text[..offset].chars().count() as i64)
}

/// Python's string methods where the packaged ones differ from Python; the packaged ones otherwise.
fn call_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        if method == "items" && value.kind() == ValueKind::Map && args.is_empty() {
            return python::items(value);
        }
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Ok(Value::from(strip(text, chars, method != "rstrip", method != "lstrip")))
        }
        "find" => {
            let (what,): (&str,) = from_args(args)?;
            Ok(Value::from(character_index(text, text.find(what))))
        }
        "rfind" => {
            let (what,): (&str,) = from_args(args)?;
            Ok(Value::from(character_index(text, text.rfind(what))))
        }
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let offset = if method == "index" { text.find(what) } else { text.rfind(what) };
            match character_index(text, offset) {
                -1 => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
                index => Ok(Value::from(index)),
            }
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Ok(Value::from(text.matches(what).count()))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" => {
            let (separator, limit): (&str, Option<i64>) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let limit = limit
                .filter(|limit| *limit >= 0)
                .map_or(usize::MAX, |limit| (limit as usize).saturating_add(1));
            let mut parts: Vec<Value> = text.rsplitn(limit, separator).map(Value::from).collect();
            parts.reverse();
            Ok(Value::from(parts))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let split = if method == "partition" {
                text.split_once(separator)
            } else {
                text.rsplit_once(separator)
            };
            let parts = match split {
                Some((left, right)) => [left, separator, right],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Ok(Tuple::value(parts.into_iter().map(Value::from).collect()))
        }
        "isspace" | "isdigit" | "isnumeric" | "isalnum" | "isalpha" | "islower" | "isupper"
            if text.is_empty() =>
        {
            Ok(Value::from(false))
        }
        "islower" => Ok(Value::from(
            text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        )),
        "isupper" => Ok(Value::from(
            text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        )),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}
