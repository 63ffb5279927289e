//! Every message has a test that reads it: `tests/messages` says which, and this compares it with the
//! sources.
//!
//! A message is a string of three words or more in the sources of `router`, and what an error type
//! says in those of `bench` and `worker-shim`, of the preload library every one. Not counted: what stands in tests and in comments, what
//! is logged as info or less, help, assertions and reasons of lints. So whoever writes a new message
//! hears of it here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use croupier_tests::Guard;

const TABLE: &str = include_str!("../messages");

/// Words of a message. Shorter strings are names, columns and keys.
const WORDS: usize = 3;

/// Letters of a part that is told from others by it.
const DISTINCT: usize = 8;

/// Stands in a part for whatever is said between two pieces of it.
const BETWEEN: &str = " … ";

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A source with its strings and comments blanked out, at the same places, and its strings.
struct Source {
    code: String,
    strings: Vec<(usize, String)>,
}

impl Source {
    fn read(text: &str) -> Self {
        let mut source = Self { code: String::new(), strings: Vec::new() };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let len = source.take(rest, c);
            let (taken, left) = rest.split_at(len.max(c.len_utf8()));
            if len == 0 {
                source.code.push_str(taken);
            } else {
                source.code.extend(taken.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
            }
            rest = left;
        }
        source
    }

    /// The length of the comment, string or character that begins here, or 0.
    fn take(&mut self, rest: &str, c: char) -> usize {
        let word_before = self.code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            'r' if !word_before && (rest.starts_with("r\"") || rest.starts_with("r#")) => {
                let marks = rest.bytes().skip(1).take_while(|b| *b == b'#').count();
                let Some(body) = rest.get(marks + 1..).and_then(|body| body.strip_prefix('"'))
                else {
                    return 0;
                };
                let end = format!("\"{}", "#".repeat(marks));
                let len = body.find(&end).unwrap_or(body.len());
                self.strings.push((self.code.len(), body[..len].to_owned()));
                marks + 2 + len + end.len()
            }
            '"' => {
                let len = end_of_string(&rest[1..]);
                self.strings.push((self.code.len(), unescaped(&rest[1..=len])));
                len + 2
            }
            '\'' => end_of_char(rest),
            _ => 0,
        }
    }

    /// The strings of each function that is a test.
    fn tests(&self) -> BTreeMap<String, Vec<&str>> {
        let mut tests = BTreeMap::new();
        for (at, _) in self.code.match_indices("#[test]") {
            let Some(start) = self.code[at..].find("fn ").map(|skip| at + skip + 3) else {
                continue;
            };
            let name: String = self.code[start..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let mut depth = 0;
            let closes = |c: char| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                c == '}' && depth == 0
            };
            let end = self.code[start..].find(closes).map_or(self.code.len(), |len| start + len);
            let within = self.strings.iter().filter(|(place, _)| (start..end).contains(place));
            tests.insert(name, within.map(|(_, string)| string.as_str()).collect());
        }
        tests
    }
}

fn end_of_string(body: &str) -> usize {
    let mut escaped = false;
    let closes = |c: char| {
        let end = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        end
    };
    body.find(closes).unwrap_or(body.len())
}

/// Quotes, and lines that go on, as the program says them.
fn unescaped(body: &str) -> String {
    let mut text = String::new();
    let mut lines = body.split("\\\n");
    text.push_str(lines.next().unwrap_or_default());
    for line in lines {
        text.push_str(line.trim_start());
    }
    text.replace("\\\"", "\"").replace("\\'", "'").replace("\\n", "\n")
}

/// 0: a lifetime.
fn end_of_char(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => rest[3..].find('\'').map_or(0, |len| len + 4),
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// `PART … PART`: in this order.
fn says(text: &str, part: &str) -> bool {
    let mut rest = Some(text);
    part.split(BETWEEN).all(|piece| {
        rest = rest.and_then(|text| text.split_once(piece)).map(|(_, after)| after);
        rest.is_some()
    })
}

/// What a format string says by itself.
fn parts(message: &str) -> impl Iterator<Item = &str> {
    message.split('{').enumerate().map(|(number, part)| match part.split_once('}') {
        Some((_, after)) if number > 0 => after,
        Some(_) | None => part,
    })
}

fn is_sentence(string: &str) -> bool {
    let words = parts(string).flat_map(|part| part.split(|c: char| !c.is_alphabetic()));
    string.contains(' ') && words.filter(|word| word.chars().count() > 1).count() >= WORDS
}

/// The messages of a source: where, and what.
fn messages(path: &str, text: &str) -> Vec<(usize, String)> {
    let product = text.find("#[cfg(test)]").filter(|at| text[*at..].contains("mod tests {"));
    let text = &text[..product.unwrap_or(text.len())];
    let source = Source::read(text);
    let every = path.starts_with("router/src") || path.starts_with("worker-shim/preload");
    let counts = |place: usize, string: &str| {
        let before = &source.code[..place];
        let from = before.rfind([';', '{', '}']).map_or(0, |at| at + 1);
        let statement = &before[from..];
        let quiet = ["log::debug!(", "log::trace!(", "log::info!(", "assert"];
        let silent = ["reason = ", ".expect(", "unreachable!("];
        is_sentence(string)
            && (every || statement.contains("#[error("))
            && !string.contains("Examples:\n")
            // A line of a unit file.
            && !string.starts_with("# ")
            && !quiet.iter().any(|word| statement.contains(word))
            && !silent.iter().any(|word| statement.trim_end().ends_with(word.trim_end()))
    };
    let strings = source.strings.iter().filter(|(place, string)| counts(*place, string));
    strings.map(|(at, string)| (text[..*at].matches('\n').count() + 1, string.clone())).collect()
}

/// Sources of the product, by path.
fn sources() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut folders: Vec<PathBuf> = ["router/src", "bench/src", "worker-shim"]
        .iter()
        .map(|folder| root().join(folder))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if !matches!(name.as_str(), "tests" | "examples" | "target") {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let key = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                all.insert(key, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    all
}

/// What stands for a test where none is: see the head of the table.
const WITHOUT: [&str; 3] = ["fault", "news", "unread"];

/// Messages that no test reads yet, though one could. It is only to become smaller.
const UNREAD_MAX: usize = 0;

/// `[SOURCE]`, and below it `PART -> FILE.rs::TEST`.
fn table() -> BTreeMap<&'static str, Vec<(&'static str, &'static str)>> {
    let mut table: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut section = "";
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(path) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(".rs]")) {
            section = &line[1..path.len() + 4];
            assert!(!table.contains_key(section), "tests/messages: [{section}] is there twice");
            table.insert(section, Vec::new());
            continue;
        }
        let split = line.rsplit_once(" -> ");
        assert!(split.is_some(), "tests/messages: a line is PART -> FILE.rs::TEST, not {line:?}");
        let (part, test) = split.unwrap();
        assert!(
            part.chars().count() >= DISTINCT,
            "tests/messages: {part:?} is too short to tell a message by; say {DISTINCT} letters of it"
        );
        table.get_mut(section).unwrap().push((part, test));
    }
    table
}

#[test]
fn every_message_has_a_line_in_the_table() {
    let _guard = Guard::new("messages");
    let (table, sources) = (table(), sources());
    let mut missing = Vec::new();
    let mut gone = Vec::new();
    for (path, text) in &sources {
        let lines = table.get(path.as_str()).map(Vec::as_slice).unwrap_or_default();
        let found = messages(path, text);
        for (number, message) in &found {
            if !lines.iter().any(|(part, _)| says(message, part)) {
                missing.push(format!("{path}:{number}: {message}"));
            }
        }
        for (part, _) in lines {
            if !found.iter().any(|(_, message)| says(message, part)) {
                gone.push(format!("[{path}] {part}"));
            }
        }
    }
    gone.extend(table.keys().filter(|path| !sources.contains_key(**path)).map(ToString::to_string));
    assert!(
        missing.is_empty(),
        "no line in tests/messages. Write a test that provokes it and reads it, and add a line with a \
         part of it under its file, PART -> FILE.rs::TEST: {missing:#?}"
    );
    assert!(gone.is_empty(), "tests/messages has lines for messages that are gone: {gone:#?}");
}

#[test]
fn the_tests_that_read_messages_exist_and_read_them() {
    let _guard = Guard::new("messages");
    let mut read: BTreeMap<&str, Source> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (part, test) in table().into_values().flatten() {
        if WITHOUT.contains(&test) {
            continue;
        }
        let Some((file, name)) = test.split_once("::") else {
            panic!("tests/messages: {part:?}: say FILE.rs::TEST, not {test:?}")
        };
        let source = read.entry(file).or_insert_with(|| {
            let folder = if file.contains('/') { "" } else { "tests/system" };
            let path = root().join(folder).join(file);
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("tests/messages: {}: {error}", path.display()));
            Source::read(&text)
        });
        match source.tests().get(name) {
            None => wrong.push(format!("{test}: there is no such test")),
            Some(strings) if !strings.iter().any(|string| says(string, part)) => {
                wrong.push(format!("{test}: it does not read {part:?}"));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "tests/messages: {wrong:#?}");
}

#[test]
fn hardly_any_message_is_unread() {
    let _guard = Guard::new("messages");
    let table = table();
    let unread = table.values().flatten().filter(|(_, test)| *test == "unread").count();
    assert_eq!(unread, UNREAD_MAX, "write tests for them, and make UNREAD_MAX smaller");
}

/// Each text in the README that looks like croupier's own words is one of the table.
#[test]
fn what_the_readme_quotes_is_said() {
    let _guard = Guard::new("messages");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let parts: BTreeSet<&str> = table().into_values().flatten().map(|(part, _)| part).collect();
    for (number, line) in readme.lines().enumerate() {
        let quoted = ["    croupier: ", "`croupier: ", "    error: ", "`error: "];
        if quoted.iter().any(|head| line.contains(head)) {
            assert!(
                parts.iter().any(|part| says(line, part)),
                "README.md:{}: no line of tests/messages has this message: {line}",
                number + 1
            );
        }
    }
}
