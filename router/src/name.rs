//! What a primary is called when nobody says.
//!
//! Owns: the rule from command to name. Promises: [`derive`] always yields a valid name. Never
//! does: look whether the name is taken (that is `control::place`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest name: with a directory and `.sock` it must fit a Unix socket's path.
pub const NAME_MAX: usize = 40;

/// Whether this can be a name: letters, digits, `.`, `_`, `-`, not beginning with punctuation.
#[must_use]
pub fn is_valid(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The name of a primary that runs `command`.
///
/// A program's own name, but an interpreter or launcher is named after what it runs: its script,
/// its module (`python3 -m http.server`), its jar.
#[must_use]
pub fn derive(command: &[OsString]) -> String {
    let words: Vec<&OsStr> = command.iter().map(OsString::as_os_str).collect();
    // Launchers nest (`env X=1 nice node a.js`), but not this deep.
    clean(subject(&words, 4))
}

/// Which flags of an interpreter take the next argument, and which name what it runs.
struct Interpreter {
    /// Prefixes of the program's name: `python` is also `python3.11`.
    names: &'static [&'static str],
    /// `-m http.server`: the argument is the subject.
    subject_flags: &'static [&'static str],
    /// `-W ignore`: the argument is to be skipped.
    value_flags: &'static [&'static str],
    /// `-c 'code'`: the subject is the first word of the code, or unknown.
    code_flags: &'static [&'static str],
}

const INTERPRETERS: &[Interpreter] = &[
    Interpreter {
        names: &["python", "pypy"],
        subject_flags: &["-m"],
        value_flags: &["-W", "-X", "--check-hash-based-pycs"],
        code_flags: &["-c"],
    },
    Interpreter {
        names: &["node", "nodejs", "bun", "deno", "tsx", "ts-node"],
        subject_flags: &[],
        value_flags: &["-r", "--require", "--import", "--loader", "--env-file", "-C"],
        code_flags: &["-e", "--eval", "-p", "--print"],
    },
    Interpreter {
        names: &["ruby", "jruby"],
        subject_flags: &[],
        value_flags: &["-I", "-r", "-C"],
        code_flags: &["-e"],
    },
    Interpreter {
        names: &["java"],
        subject_flags: &["-jar"],
        value_flags: &["-cp", "-classpath", "--class-path", "-p", "--module-path"],
        code_flags: &[],
    },
    Interpreter {
        names: &["php"],
        subject_flags: &["-f", "-F"],
        value_flags: &["-c", "-d", "-S", "-t", "-z"],
        code_flags: &["-r", "-B", "-R", "-E"],
    },
    Interpreter {
        names: &["perl", "raku"],
        subject_flags: &[],
        value_flags: &["-I", "-M"],
        code_flags: &["-e", "-E"],
    },
    Interpreter {
        names: &["sh", "bash", "dash", "zsh", "ksh", "ash", "busybox"],
        subject_flags: &[],
        value_flags: &["-o", "-O"],
        code_flags: &["-c", "-lc", "-ec", "-xc", "-ic"],
    },
    Interpreter {
        names: &["env", "nice", "nohup", "setsid", "stdbuf", "exec", "time", "taskset", "ionice"],
        subject_flags: &[],
        value_flags: &["-u", "-n", "-o", "-i", "-e", "-c"],
        code_flags: &["-S"],
    },
];

fn subject<'a>(words: &[&'a OsStr], depth: u8) -> &'a OsStr {
    let Some((&program, arguments)) = words.split_first() else { return OsStr::new("") };
    let base = Path::new(program).file_name().unwrap_or(program);
    let Some(kind) = INTERPRETERS.iter().find(|kind| is_one_of(base, kind.names)) else {
        return base;
    };
    if depth == 0 {
        return base;
    }
    let launcher = kind.names.contains(&"env");
    let has = |flags: &[&str], word: &OsStr| flags.iter().any(|flag| word == OsStr::new(flag));
    let mut rest = arguments;
    while let Some((&word, tail)) = rest.split_first() {
        let next = tail.first().copied();
        if has(kind.subject_flags, word) {
            return next.and_then(script).unwrap_or(base);
        } else if has(kind.code_flags, word) {
            let code: Vec<&OsStr> = next.map_or_else(Vec::new, code_words);
            return if code.is_empty() || !runs_programs(kind) {
                base
            } else {
                subject(&code, depth - 1)
            };
        } else if has(kind.value_flags, word) {
            rest = tail.get(1..).unwrap_or_default();
        } else if word.as_bytes().starts_with(b"-") || (launcher && is_assignment(word)) {
            rest = tail;
        } else if launcher {
            return subject(rest, depth - 1);
        } else {
            return script(word).unwrap_or(base);
        }
    }
    // `php -S 127.0.0.1:8000`, a bare `python3`: nothing better than the interpreter.
    base
}

fn runs_programs(kind: &Interpreter) -> bool {
    kind.names.contains(&"sh") || kind.names.contains(&"env")
}

/// `python3.11` is python; `nodemon` is not node.
fn is_one_of(base: &OsStr, names: &[&str]) -> bool {
    names.iter().any(|name| {
        base.as_bytes().strip_prefix(name.as_bytes()).is_some_and(|version| {
            version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.' || *byte == b'-')
        })
    })
}

fn is_assignment(word: &OsStr) -> bool {
    let bytes = word.as_bytes();
    bytes.contains(&b'=')
        && bytes
            .iter()
            .take_while(|byte| **byte != b'=')
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// The words of a shell's code up to the first operator; `exec` and assignments left out.
fn code_words(code: &OsStr) -> Vec<&OsStr> {
    let first = code
        .as_bytes()
        .split(|byte| b";&|\n".contains(byte))
        .find(|part| part.iter().any(|byte| !byte.is_ascii_whitespace()))
        .unwrap_or_default();
    first
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(OsStr::from_bytes)
        .skip_while(|word| is_assignment(word) || *word == OsStr::new("exec"))
        .collect()
}

/// A script's file name without its extension, as PM2 does it. `None` for `.` and `/`.
fn script(word: &OsStr) -> Option<&OsStr> {
    const EXTENSIONS: [&str; 11] =
        ["py", "pyc", "js", "mjs", "cjs", "ts", "rb", "php", "pl", "sh", "jar"];
    let path = Path::new(word);
    let file = path.file_name()?;
    match path.extension() {
        Some(extension) if EXTENSIONS.iter().any(|one| extension == OsStr::new(one)) => {
            path.file_stem()
        }
        Some(_) | None => Some(file),
    }
}

fn clean(raw: &OsStr) -> String {
    let kept: String = raw
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(NAME_MAX)
        .collect();
    let kept = kept.trim_end_matches(['-', '.', '_']);
    if kept.is_empty() { "croupier".into() } else { kept.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_their_names() {
        for (command, name) in [
            ("./target/release/my-server --port 1", "my-server"),
            ("gunicorn app:app", "gunicorn"),
            ("python3 -m http.server 8000", "http.server"),
            ("python3.11 -u -W ignore -m flask run", "flask"),
            ("/usr/bin/python3 /srv/web/app.py", "app"),
            ("python3 -c pass", "python3"),
            ("python3", "python3"),
            ("node --inspect server.js", "server"),
            ("node -r ./tracing chat.mjs x.js", "chat"),
            ("nodemon x.js", "nodemon"),
            ("npm start", "npm"),
            ("java -Xmx1g -cp a.jar -jar lib/shop-1.2.jar", "shop-1.2"),
            ("java -cp a.jar com.example.Main", "com.example.Main"),
            ("php -S 127.0.0.1:8000", "php"),
            ("php -S 127.0.0.1:8000 router.php", "router"),
            ("ruby -Ilib app.rb", "app"),
            ("perl daemon.pl", "daemon"),
            ("env -u HOME A=1 nice -n 5 node a.js", "a"),
            ("bash start.sh", "start"),
            ("weird\u{e9}name", "weird-name"),
            ("...", "croupier"),
        ] {
            let words: Vec<OsString> = command.split(' ').map(OsString::from).collect();
            assert_eq!(derive(&words), name, "{command}");
            assert!(is_valid(&derive(&words)), "{command}");
        }
    }

    #[test]
    fn a_shell_is_named_after_what_it_runs() {
        for (code, name) in [
            ("node server.js; true", "server"),
            ("exec python3 -m http.server 80", "http.server"),
            ("A=1 ./serve & wait", "serve"),
            ("", "sh"),
        ] {
            assert_eq!(derive(&["sh".into(), "-c".into(), code.into()]), name, "{code}");
        }
        let nested = ["sh", "-c", "sh -c sh"].map(OsString::from);
        assert_eq!(derive(&nested), "sh");
    }

    #[test]
    fn names_that_cannot_be() {
        for bad in ["", ".", "-a", "a/b", "a b", "\u{e9}", &"x".repeat(NAME_MAX + 1)] {
            assert!(!is_valid(bad), "{bad}");
        }
        assert_eq!(derive(&["y".repeat(100).into()]).len(), NAME_MAX);
    }
}
