//! `croupier.toml`: the settings that a file gives, each with the line that it stands on.
//!
//! Owns: finding, reading and judging the file. Promises: its keys are the flags' names and its
//! values go through the flags' own parsers; whatever it does not understand is an error with file,
//! line and the nearest name that there is; it is bounded, and never waited for. Never does: know
//! what a flag means.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use croupier_core::config::Policy;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// The file that is read without being named.
pub const DEFAULT_FILE: &str = "croupier.toml";
/// Longest file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// Flags that say which file and what of it, so that it cannot say them itself.
const NOT_IN_FILES: [&str; 3] = ["config", "profile", "help"];

/// Where in a file something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file, as the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// The profile that it is part of.
    pub profile: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One setting of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As they would be written after the flag.
    pub(super) values: Vec<String>,
    pub(super) place: Place,
}

impl Entry {
    /// Of one that was judged to be a policy.
    pub(super) fn policy(&self) -> Option<Policy> {
        self.values.first().and_then(|text| super::parse_policy(text).ok())
    }
}

/// What a file says, a profile's settings already over the others.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    /// By the names of the parser's arguments.
    pub(super) entries: BTreeMap<String, Entry>,
    /// `[env]`.
    pub(super) env: BTreeMap<String, Entry>,
    /// The policy of each value of `listen` that has its own.
    pub(super) policies: Vec<Option<Entry>>,
}

/// Which file: the one that was named, else `croupier.toml` where it is in the working directory.
///
/// # Errors
/// A file that was not named, and belongs to somebody else.
pub(super) fn find(named: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    if let Some(path) = named {
        return Ok(Some(path.to_owned()));
    }
    let path = Path::new(DEFAULT_FILE);
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    let own = nix::unistd::geteuid().as_raw();
    let strange = ![0, own].contains(&metadata.uid()) || metadata.mode() & 0o002 != 0;
    if strange && metadata.is_file() {
        return Err(ConfigError::Conflict(format!(
            "./{DEFAULT_FILE} could have been written by somebody else (it belongs to user {}, mode \
             {:o}), and would be obeyed; say --config {DEFAULT_FILE} if you mean it, or --config \
             /dev/null",
            metadata.uid(),
            metadata.mode() & 0o777
        )));
    }
    Ok(Some(path.to_owned()))
}

/// Reads a file and judges each of its values alone.
///
/// # Errors
/// What is wrong, on which line, and what would be right.
pub(super) fn read(
    path: &Path,
    profile: Option<&str>,
    flags: &Command,
) -> Result<File, ConfigError> {
    let text = text_of(path)?;
    let reader = Reader { file: path.display().to_string(), text: &text, flags, profile: None };
    let document = DeTable::parse(&text).map_err(|error| {
        let at = error.span().unwrap_or_default();
        reader.error(&at, format!("this is not TOML: {}", error.message().trim_end()))
    })?;
    let mut file = File::default();
    let mut profiles = BTreeMap::new();
    let mut top = Vec::new();
    for (key, value) in document.get_ref().iter() {
        if key.get_ref() != "profile" {
            top.push((key, value));
            continue;
        }
        let DeValue::Table(tables) = value.get_ref() else {
            return Err(reader.error(&key.span(), "profiles are tables, as in [profile.dev]"));
        };
        for (name, value) in tables.iter() {
            let DeValue::Table(table) = value.get_ref() else {
                return Err(reader.error(&name.span(), "a profile is a table, as in [profile.dev]"));
            };
            profiles.insert(name.get_ref().to_string(), table);
        }
    }
    reader.settings(top.into_iter(), &mut file)?;
    // Those that are not asked for are judged too: a mistake shows before it is needed.
    for (name, table) in &profiles {
        let reader = Reader { profile: Some(name.clone()), ..reader.clone() };
        let mut of_profile = File::default();
        reader.settings(table.iter(), &mut of_profile)?;
        if Some(name.as_str()) == profile {
            if of_profile.entries.contains_key("listen") {
                file.policies = of_profile.policies;
            }
            file.entries.extend(of_profile.entries);
            file.env.extend(of_profile.env);
        }
    }
    match profile {
        Some(wanted) if !profiles.contains_key(wanted) => {
            let known: Vec<&str> = profiles.keys().map(String::as_str).collect();
            let known = match known.as_slice() {
                [] => format!("{} has no profile", reader.file),
                some => format!("the profiles of {} are {}", reader.file, some.join(", ")),
            };
            Err(ConfigError::value("--profile", wanted, format!("there is no such; {known}")))
        }
        Some(_) | None => Ok(file),
    }
}

/// The bytes, from what can be read again at a reload and never waits for a writer.
fn text_of(path: &Path) -> Result<String, ConfigError> {
    let shown = &path.display();
    let wrong = &|why: String| ConfigError::value("--config", shown, why);
    let cannot = &|error: std::io::Error| wrong(format!("cannot be read: {error}"));
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(cannot)?;
    let kind = file.metadata().map_err(cannot)?.file_type();
    // /dev/null is how one says that there is none.
    let nothing = kind.is_char_device() && path == Path::new("/dev/null");
    if !kind.is_file() && !nothing {
        return Err(wrong("must be a file, as a reload reads it again".into()));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > FILE_MAX) {
        return Err(wrong(format!("is longer than {FILE_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        ConfigError::File { place: format!("{shown}:{line}"), why: "this is not UTF-8".into() }
    })
}

/// What is needed to judge one table of the file.
#[derive(Clone)]
struct Reader<'a> {
    file: String,
    text: &'a str,
    flags: &'a Command,
    profile: Option<String>,
}

type Pair<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

impl Reader<'_> {
    fn place(&self, at: &Range<usize>) -> Place {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place { file: self.file.clone(), line, profile: self.profile.clone() }
    }

    fn error(&self, at: &Range<usize>, why: impl Into<String>) -> ConfigError {
        ConfigError::File { place: self.place(at).to_string(), why: why.into() }
    }

    fn settings<'a, 'i: 'a>(
        &self,
        table: impl Iterator<Item = Pair<'a, 'i>>,
        into: &mut File,
    ) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let at = key.span();
            match (name, value.get_ref()) {
                ("env", DeValue::Table(table)) => self.variables(table, into)?,
                ("env", _) => {
                    return Err(
                        self.error(&at, "variables are a table: [env] and NAME = \"value\"")
                    );
                }
                ("command", DeValue::Array(words)) => {
                    let words = words.iter().map(|word| {
                        let text = word.get_ref().as_str().map(str::to_owned);
                        text.ok_or_else(|| {
                            self.error(&word.span(), "the command's words are strings")
                        })
                    });
                    let values = words.collect::<Result<Vec<String>, _>>()?;
                    if values.is_empty() {
                        return Err(self.error(&at, "the command is empty"));
                    }
                    self.put(into, name, values, &at);
                }
                ("command", _) => {
                    let why = "a command is a list of words: command = [\"node\", \"app.js\"]";
                    return Err(self.error(&at, why));
                }
                ("listen", DeValue::Array(list)) => {
                    let mut values = Vec::new();
                    for one in list.iter() {
                        let (value, policy) = self.listener(one)?;
                        values.push(value);
                        into.policies.push(policy);
                    }
                    self.put(into, name, values, &at);
                }
                _ => self.setting(name, value, &at, into)?,
            }
        }
        Ok(())
    }

    fn put(&self, into: &mut File, name: &str, values: Vec<String>, at: &Range<usize>) {
        into.entries.insert(name.to_owned(), Entry { values, place: self.place(at) });
    }

    /// `[env]`.
    fn variables(&self, table: &DeTable<'_>, into: &mut File) -> Result<(), ConfigError> {
        for (key, value) in table.iter() {
            let name = key.get_ref().as_ref();
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(self.error(&key.span(), format!("{name:?} is no name of a variable")));
            }
            let text = match value.get_ref().as_bool() {
                Some(value) => Some(value.to_string()),
                None => scalar(value.get_ref()),
            };
            let value = text.ok_or_else(|| {
                self.error(&value.span(), format!("{name}: a variable's value is a string"))
            })?;
            if value.contains('\0') {
                return Err(self.error(&key.span(), format!("{name}: a value cannot contain \\0")));
            }
            let entry = Entry { values: vec![value], place: self.place(&key.span()) };
            into.env.insert(name.to_owned(), entry);
        }
        Ok(())
    }

    /// One address: a string as after `-l`, or a table of `[[listen]]`; and its own policy.
    fn listener(
        &self,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(String, Option<Entry>), ConfigError> {
        let at = value.span();
        let Some(table) = value.get_ref().as_table() else {
            let text = scalar(value.get_ref()).ok_or_else(|| {
                self.error(&at, "an address is a string, or a table [[listen]] with address = …")
            })?;
            self.judge("listen", &text, &at)?;
            return Ok((text, None));
        };
        let (mut address, mut program, mut policy) = (None, None, None);
        for (key, value) in table.iter() {
            let (name, at) = (key.get_ref().as_ref(), key.span());
            let text = scalar(value.get_ref())
                .ok_or_else(|| self.error(&at, format!("{name} must be a string")))?;
            match name {
                "address" => address = Some(text),
                "program" => program = Some(text),
                "policy" => {
                    self.judge("policy", &text, &at)?;
                    policy = Some(Entry { values: vec![text], place: self.place(&at) });
                }
                _ => {
                    let near = nearest(name, ["address", "program", "policy"].into_iter());
                    let why = format!("[[listen]] has no key {name}{near}");
                    return Err(self.error(&at, why));
                }
            }
        }
        let Some(address) = address else {
            return Err(self.error(&at, "[[listen]] needs an address, as in address = \":8080\""));
        };
        let text = program.map_or_else(|| address.clone(), |own| format!("{address}={own}"));
        self.judge("listen", &text, &at)?;
        Ok((text, policy))
    }

    /// Any other key: a flag's name.
    fn setting(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        at: &Range<usize>,
        into: &mut File,
    ) -> Result<(), ConfigError> {
        let known = |arg: &&Arg| {
            arg.get_long().is_some_and(|long| !NOT_IN_FILES.contains(&long)) && !arg.is_hide_set()
        };
        let known: Vec<&Arg> = self.flags.get_arguments().filter(known).collect();
        let Some(arg) = known.iter().find(|arg| arg.get_long() == Some(name)) else {
            let why = if NOT_IN_FILES.contains(&name) {
                format!("{name} says what is read of the file: it is a flag only")
            } else {
                let names = known.iter().filter_map(|arg| arg.get_long());
                let names = names.chain(["command", "env", "profile"]);
                format!("{name} is no setting{}", nearest(name, names))
            };
            return Err(self.error(at, why));
        };
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let wanted = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
        let wanted = wanted.unwrap_or_else(|| "a value".into());
        let values = match (value.get_ref(), is_switch) {
            (DeValue::Boolean(on), true) => vec![on.to_string()],
            (_, true) => return Err(self.error(at, format!("{name} is true or false"))),
            (DeValue::Array(list), false) if matches!(arg.get_action(), ArgAction::Append) => list
                .iter()
                .map(|one| scalar(one.get_ref()).ok_or_else(|| one.span()))
                .collect::<Result<_, _>>()
                .map_err(|at| self.error(&at, format!("{name} is a list of {wanted}")))?,
            (other, false) => vec![scalar(other).ok_or_else(|| {
                self.error(at, format!("{name} takes {wanted}, not {}", kind_of(other)))
            })?],
        };
        for text in values.iter().filter(|_| !is_switch) {
            self.judge(name, text, at)?;
        }
        // The parser's own name for it.
        self.put(into, arg.get_id().as_str(), values, at);
        Ok(())
    }

    /// The flag's own parser's word on one value.
    fn judge(&self, name: &str, value: &str, at: &Range<usize>) -> Result<(), ConfigError> {
        if name == "listen" {
            // The parser of the command line leaves it to the checks that come after.
            return match super::parse_listen(value) {
                Ok(_) => Ok(()),
                Err(why) => Err(self.error(at, format!("listen {value}: {why}"))),
            };
        }
        let Some(arg) = self.flags.get_arguments().find(|arg| arg.get_long() == Some(name)) else {
            return Ok(());
        };
        let alone = Command::new("value").no_binary_name(true).disable_help_flag(true);
        let word = OsString::from(format!("--{name}={value}"));
        alone.arg(arg.clone()).try_get_matches_from([word]).map(drop).map_err(|error| {
            let why = std::error::Error::source(&error)
                .map_or_else(|| error.kind().to_string(), ToString::to_string);
            self.error(at, format!("{name} {value}: {why}"))
        })
    }
}

/// The text of a value that is one.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number in another base than ten",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// `; did you mean x?`, or nothing where nothing is near.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let plain = name.replace('_', "-");
    known
        .map(|one| (strsim::jaro_winkler(&plain, one), one))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, one)| format!("; did you mean {one}?"))
}
