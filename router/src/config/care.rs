//! How workers' processes are looked after: where they start, with which mask and variables; and what
//! the primary itself leaves or waits for.
//!
//! Owns: [`Care`], and the reading of `--env-file`. Promises: a file is read to a bound, and one that
//! would be misread is refused with the line. Never does: change this process.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ConfigError;
use crate::cli::run::RunArgs;

/// Largest `--env-file`, in bytes: the kernel gives a program's environment not much more.
const ENV_FILE_MAX: u64 = 1 << 20;
/// Shortest `--report`: each is a look at every worker in /proc.
const REPORT_MIN: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Care {
    /// `--chdir`, absolute: workers start there, looked up anew for each.
    pub folder: Option<PathBuf>,
    /// `--umask`.
    pub umask: Option<u32>,
    /// The variables of every `--env-file`, in order.
    pub variables: Vec<(OsString, OsString)>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--stop-delay`; zero: none.
    pub stop_delay: Duration,
    /// `--report`.
    pub report: Option<Duration>,
}

impl Care {
    pub(super) fn new(args: &RunArgs) -> Result<Self, ConfigError> {
        let folder = args.chdir.as_deref().map(absolute_folder).transpose()?;
        let mut variables = Vec::new();
        for path in &args.env_file {
            variables.extend(read_env_file(path)?);
        }
        let report = args.report.filter(|every| !every.is_zero());
        if report.is_some_and(|every| every < REPORT_MIN) {
            let given = humantime::format_duration(args.report.unwrap_or_default());
            return Err(ConfigError::value("--report", given, "at least 1s; 0 is off"));
        }
        Ok(Self {
            folder,
            umask: args.umask,
            variables,
            pid_file: args.pid_file.clone(),
            stop_delay: args.stop_delay,
            report,
        })
    }
}

/// Not resolved further: a link on the way is followed at each start of a worker.
fn absolute_folder(path: &Path) -> Result<PathBuf, ConfigError> {
    let refused = |why: String| ConfigError::value("--chdir", path.display(), why);
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(refused("it is no folder".into())),
        Err(error) => return Err(refused(error.to_string())),
    }
    std::path::absolute(path).map_err(|error| refused(error.to_string()))
}

/// Parses `--umask`: octal, as in umask(1).
///
/// # Errors
/// What the value should have been.
pub fn parse_umask(text: &str) -> Result<u32, String> {
    let octal = text.bytes().all(|byte| byte.is_ascii_digit());
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| octal && *mask <= 0o777);
    mask.ok_or_else(|| "a mask is an octal number of up to three digits, as in 022 or 077".into())
}

fn read_env_file(path: &Path) -> Result<Vec<(OsString, OsString)>, ConfigError> {
    let refused = |why: String| ConfigError::value("--env-file", path.display(), why);
    let at = |line: usize, why: &str| refused(format!("line {line}: {why}"));
    let file = File::open(path).map_err(|error| refused(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(ENV_FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(error.to_string()))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > ENV_FILE_MAX {
        return Err(refused(format!("it has more than {} KiB", ENV_FILE_MAX >> 10)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        at(1 + before.iter().filter(|byte| **byte == b'\n').count(), "it is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if let Some(line) = line_of(text, |c| c == '\0') {
        return Err(at(line, "it has a NUL, which no variable can"));
    }
    if let Some(line) = unclear_dollar(text) {
        return Err(at(
            line,
            "a $ stands for itself only in single quotes or as \\$; a variable is ${NAME}",
        ));
    }
    let mut variables = Vec::new();
    for pair in dotenvy::from_read_iter(text.as_bytes()) {
        match pair {
            Ok((name, value)) => variables.push((name.into(), value.into())),
            // What is in the line may be a secret.
            Err(dotenvy::Error::LineParse(found, _)) => {
                let first = found.lines().next().unwrap_or_default();
                let number = text.lines().position(|line| line.contains(first)).unwrap_or(0);
                return Err(at(number + 1, "a line is NAME=VALUE, with quotes round spaces"));
            }
            Err(error) => return Err(refused(error.to_string())),
        }
    }
    Ok(variables)
}

fn line_of(text: &str, is: impl Fn(char) -> bool) -> Option<usize> {
    text.lines().position(|line| line.contains(&is)).map(|index| index + 1)
}

/// The line of a `$` that is neither quoted nor `${NAME}`. The parser replaces `$NAME`, up to the first
/// character that is no letter or digit, silently: a password would not survive that.
fn unclear_dollar(text: &str) -> Option<usize> {
    let (mut line, mut quote, mut escaped, mut comment) = (1, None, false, false);
    let mut before = '\n';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let was_escaped = std::mem::take(&mut escaped);
        match (c, quote) {
            ('\n', _) => {
                line += 1;
                comment = false;
            }
            _ if comment || was_escaped => {}
            ('\\', _) => escaped = true,
            ('#', None) if before.is_whitespace() => comment = true,
            ('\'' | '"', None) => quote = Some(c),
            ('\'' | '"', Some(open)) if open == c => quote = None,
            ('$', None | Some('"')) if rest.peek() != Some(&'{') => return Some(line),
            _ => {}
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<(String, String)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".env");
        std::fs::write(&path, text).unwrap();
        let string = |word: OsString| word.into_string().unwrap();
        read_env_file(&path)
            .map(|all| all.into_iter().map(|(name, value)| (string(name), string(value))).collect())
            .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    #[test]
    fn what_dotenv_files_have_is_understood() {
        let text =
            "\u{feff}# a comment with $ and '\nA=1\nexport B=two words are quoted # not this\n";
        assert!(read(text.as_bytes()).unwrap_err().contains("line 3"));
        let text = "\u{feff}# a comment with $ and '\n\nA=1\r\nexport B='$two #words'\nC=\"x\\ny\"\n\
                    D= # nothing\nE=a#b\nF=${A}.${C}\nG=\\$A\nH='more\nthan one line'\nURL=http://h/?a=b\n";
        let expected = [
            ("A", "1"),
            ("B", "$two #words"),
            ("C", "x\ny"),
            ("D", ""),
            ("E", "a#b"),
            ("F", "1.x\ny"),
            ("G", "$A"),
            ("H", "more\nthan one line"),
            ("URL", "http://h/?a=b"),
        ];
        let expected: Vec<(String, String)> =
            expected.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        assert_eq!(read(text.as_bytes()).unwrap(), expected);
        assert_eq!(read(b"").unwrap(), []);
    }

    #[test]
    fn what_would_be_misread_is_refused_with_its_line_and_without_its_secret() {
        for (text, part) in [
            (b"A=1\nPASSWORD=s3cr$et\n".as_slice(), "line 2: a $ stands for itself"),
            (b"A=\"s3cr$et\"", "line 1: a $ stands for itself"),
            (b"A=1\n\nB s3cret\n", "line 3: a line is NAME=VALUE"),
            (b"=s3cret\n", "line 1: a line is NAME=VALUE"),
            (b"A='s3cret\n", "line 1: a line is NAME=VALUE"),
            (b"A=1\nB=s3cret\0\n", "line 2: it has a NUL"),
            (b"A=1\nB=s3cret\xff\n", "line 2: it is not UTF-8"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with("--env-file FILE: ") && error.contains(part), "{error}");
            assert!(!error.contains("s3cr"), "{error}");
        }
        let long = vec![b'#'; usize::try_from(ENV_FILE_MAX).unwrap() + 1];
        assert!(read(&long).unwrap_err().contains("more than 1024 KiB"));
        let missing = read_env_file(Path::new("/no/such/.env")).unwrap_err().to_string();
        assert!(missing.contains("--env-file /no/such/.env: No such file"), "{missing}");
    }

    #[test]
    fn masks_are_octal() {
        assert_eq!(parse_umask("022"), Ok(0o22));
        assert_eq!(parse_umask("0"), Ok(0));
        assert_eq!(parse_umask("0777"), Ok(0o777));
        for bad in ["8", "1000", "-1", "+1", "u=rwx", "", "0x2"] {
            assert!(parse_umask(bad).unwrap_err().contains("octal"), "{bad}");
        }
    }
}
