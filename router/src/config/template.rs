//! Words with `{slot}` and `{id}` in them, and the variables of workers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::ConfigError;

pub(super) fn parse_env(pair: &[u8]) -> Result<(OsString, OsString), ConfigError> {
    let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) if at > 0 => {
            let (name, value) = pair.split_at(at);
            Ok((os(name), os(value.get(1..).unwrap_or_default())))
        }
        Some(_) | None => Err(ConfigError::value(
            "--env",
            String::from_utf8_lossy(pair),
            "must be NAME=VALUE, as in --env MODE=fast",
        )),
    }
}

/// `template` with `{slot}` and `{id}` replaced.
#[must_use]
pub fn expand(template: &OsStr, slot: u16, id: u32) -> OsString {
    let mut out = Vec::with_capacity(template.len());
    let mut rest = template.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(b"{slot}") {
            out.extend_from_slice(slot.to_string().as_bytes());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(b"{id}") {
            out.extend_from_slice(id.to_string().as_bytes());
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}
