//! Where each setting comes from: flag, environment, profile, file, or nowhere.
//!
//! Owns: the order of the sources, and how a command line is read once more at a reload. Promises:
//! a file's values take the place of the parser's defaults, so that everything else treats them as
//! what they are; every setting knows its source. Never does: judge settings (`file`, `run`).

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, FromArgMatches};

use super::file::{self, Entry, File, Place};
use super::{ConfigError, RunConfig, Surroundings};
use crate::cli::run::{FromFile, RunArgs};

/// What a reload can change; all else is named and refused. A new flag is of these when what it sets is
/// looked up anew for each worker, or whenever it is needed.
const AT_RELOAD: [&str; 33] = [
    "chdir",
    "command",
    "drain-timeout",
    "env-file",
    "graceful-timeout",
    "hung-timeout",
    "kill-after",
    "max-active",
    "max-connections",
    "max-draining",
    "max-lifetime",
    "max-queue-wait",
    "max-rss",
    "max-surge",
    "max-total",
    "min-uptime",
    "preload-path",
    "ready-probe",
    "ready-timeout",
    "report",
    "shed",
    "slow-start",
    "soak",
    "stall-after",
    "stay",
    "sticky-bound",
    "stop-delay",
    "stop-exit-codes",
    "stop-signal",
    "stop-signal-first",
    "umask",
    "worker-memory",
    "workers",
];

/// Whether a setting may differ after a reload.
#[must_use]
pub fn changes_at_reload(name: &str) -> bool {
    name.starts_with("env.") || AT_RELOAD.contains(&name)
}

/// Settings whose values are nobody's business.
const SECRET: [&str; 1] = ["sticky-seed"];

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// This variable of the environment.
    Variable(String),
    /// A file, or one of its profiles.
    File(Place),
    /// It was not given.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => write!(f, "flag"),
            Self::Variable(name) => write!(f, "{name}"),
            Self::File(place) => match &place.profile {
                Some(profile) => write!(f, "{place}, profile {profile}"),
                None => write!(f, "{place}"),
            },
            Self::Default => write!(f, "default"),
        }
    }
}

/// One setting and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag without its dashes; `env.NAME` for a variable; `policy.ADDRESS` for that of one
    /// `[[listen]]`; `command`.
    pub name: String,
    /// As they were written; empty where nothing was.
    pub values: Vec<String>,
    /// From where.
    pub source: Source,
}

impl Setting {
    /// Whether it is not for everybody's eyes.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.name.starts_with("env.") || SECRET.contains(&self.name.as_str())
    }
}

/// A configuration, where it came from, and how it is read again.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What is to run.
    pub config: RunConfig,
    /// Every setting, in the parser's order.
    pub settings: Vec<Setting>,
    /// How to do it again.
    pub origin: Origin,
}

/// The command line, and the file that it led to.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The definition of the subcommand.
    command: fn() -> Command,
    /// Its words, the subcommand's name first.
    words: Vec<OsString>,
    file: Option<ConfigFile>,
    /// The machine does not change because a file does.
    around: Surroundings,
}

#[derive(Debug, Clone)]
struct ConfigFile {
    path: PathBuf,
    profile: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum LoadError {
    /// What the parser says, `--help` included.
    Usage(Box<clap::Error>),
    /// What the checks say.
    Config(ConfigError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(error) => write!(f, "{error}"),
            Self::Config(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for LoadError {}

impl From<ConfigError> for LoadError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<clap::Error> for LoadError {
    fn from(error: clap::Error) -> Self {
        Self::Usage(Box::new(error))
    }
}

/// Reads a command line, the environment, and the file that they name.
///
/// # Errors
/// [`LoadError`].
pub fn load(
    command: fn() -> Command,
    words: Vec<OsString>,
    around: &Surroundings,
) -> Result<Loaded, LoadError> {
    let given = command().try_get_matches_from(&words)?;
    let named = given.get_one::<PathBuf>("config").map(PathBuf::as_path);
    let profile = given.get_one::<String>("profile").cloned();
    let file = match (file::find(named)?, profile) {
        (Some(path), profile) => Some(ConfigFile { path, profile }),
        (None, None) => None,
        (None, Some(profile)) => {
            let why =
                "profiles are part of a file, and there is no croupier.toml here; say --config";
            return Err(ConfigError::value("--profile", profile, why).into());
        }
    };
    Origin { command, words, file, around: around.clone() }.read()
}

impl Origin {
    /// Reads everything once more. The file is the one that was there at the first time, and must
    /// be there.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn read(&self) -> Result<Loaded, LoadError> {
        let pristine = (self.command)();
        let file = match &self.file {
            Some(known) => file::read(&known.path, known.profile.as_deref(), &pristine)?,
            None => File::default(),
        };
        let matches = with_defaults(pristine, &file).try_get_matches_from(&self.words)?;
        let mut args = RunArgs::from_arg_matches(&matches)?;
        let variable = |(name, entry): (&String, &Entry)| {
            let value = entry.values.first().cloned().unwrap_or_default();
            (OsString::from(name), OsString::from(value))
        };
        args.from_file = FromFile {
            env: file.env.iter().map(variable).collect(),
            workers: matches.value_source("workers") == Some(ValueSource::DefaultValue),
            policies: own_policies(&matches, &file)
                .map(|own| own.and_then(|(_, own)| Some((own.policy()?, own.place.clone()))))
                .collect(),
        };
        let mut settings = settings(&(self.command)(), &matches, &file);
        let mut config = RunConfig::new(args, &self.around)?;
        config.file = self.to_string();
        if let Some(file) = self.file().filter(|file| file.is_file() && !config.watch.is_empty()) {
            config.watch.push(file.to_owned());
        }
        note_platform(&mut settings, &config);
        Ok(Loaded { config, settings, origin: self.clone() })
    }

    /// Whether reading it again can bring anything new, where it came to these settings.
    #[must_use]
    pub fn rereads(&self, settings: &[Setting]) -> bool {
        let reads = |one: &Setting| one.name == "env-file" && !one.values.is_empty();
        self.file.is_some() || settings.iter().any(reads)
    }

    /// The file and the profile, if there are any.
    #[must_use]
    pub fn file_and_profile(&self) -> Option<(&Path, Option<&str>)> {
        self.file.as_ref().map(|file| (file.path.as_path(), file.profile.as_deref()))
    }

    /// The file, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }
}

/// The file and profile, for people; empty without one.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(file) = &self.file else { return Ok(()) };
        write!(f, "{}", file.path.display())?;
        match &file.profile {
            Some(profile) => write!(f, ", profile {profile}"),
            None => Ok(()),
        }
    }
}

/// The parser, with what the file says in the place of its own defaults.
fn with_defaults(command: Command, file: &File) -> Command {
    file.entries.iter().fold(command, |command, (id, entry)| {
        command.mut_arg(id, |arg| arg.default_values(entry.values.clone()))
    })
}

/// For each `listen` of the file, as far as no flag and no variable took their place, its address and
/// policy, where it has its own.
fn own_policies<'a>(
    matches: &'a ArgMatches,
    file: &'a File,
) -> impl Iterator<Item = Option<(&'a str, &'a Entry)>> {
    let in_force = matches.value_source("listen") == Some(ValueSource::DefaultValue);
    let values = file.entries.get("listen").filter(|_| in_force).map(|entry| &entry.values);
    values.into_iter().flatten().zip(&file.policies).map(|(value, own)| {
        let address = value.split_once('=').map_or(value.as_str(), |(public, _)| public);
        Some((address, own.as_ref()?))
    })
}

/// Where the value of one argument comes from.
fn source_of(matches: &ArgMatches, arg: &Arg, file: &File) -> Source {
    let id = arg.get_id().as_str();
    match matches.value_source(id) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => {
            let name = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            Source::Variable(name.unwrap_or_default())
        }
        Some(_) | None => match file.entries.get(id) {
            Some(entry) => Source::File(entry.place.clone()),
            None => Source::Default,
        },
    }
}

fn settings(pristine: &Command, matches: &ArgMatches, file: &File) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut variables = Vec::new();
    for (name, entry) in &file.env {
        let source = Source::File(entry.place.clone());
        let name = format!("env.{name}");
        variables.push(Setting { name, values: entry.values.clone(), source });
    }
    for arg in pristine.get_arguments() {
        let id = arg.get_id().as_str();
        let Some(name) = arg.get_long().or_else(|| (id == "command").then_some(id)) else {
            continue;
        };
        // Not of a run, but of how it is told.
        if ["help", "config", "profile", "json"].contains(&name) {
            continue;
        }
        let source = source_of(matches, arg, file);
        let raw = matches.get_raw(id).into_iter().flatten();
        let values: Vec<String> = raw.map(|one| one.to_string_lossy().into_owned()).collect();
        if id != "env" {
            settings.push(Setting { name: name.to_owned(), values, source });
            if id == "policy" {
                settings.extend(own_policies(matches, file).flatten().map(|(address, own)| {
                    Setting {
                        name: format!("policy.{address}"),
                        values: own.values.clone(),
                        source: Source::File(own.place.clone()),
                    }
                }));
            }
            continue;
        }
        for pair in values.iter().flat_map(|value| value.split('\n')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = format!("env.{name}");
            variables.retain(|known: &Setting| known.name != name);
            let values = vec![value.to_owned()];
            variables.push(Setting { name, values, source: source.clone() });
        }
    }
    settings.extend(variables);
    settings
}

/// The number of workers that a platform's variable gave.
fn note_platform(settings: &mut [Setting], config: &RunConfig) {
    let workers = settings.iter_mut().find(|setting| setting.name == "workers");
    if let (Some(setting), Some(name)) = (workers, config.workers.from_platform) {
        setting.source = Source::Variable(name.to_owned());
        setting.values = vec![config.workers.count.to_string()];
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::around;
    use super::*;
    use crate::config::policy_name;
    use croupier_core::config::Policy;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn load(&self, text: &str, words: &[&str]) -> Result<Loaded, String> {
            self.load_in(text, words, &around())
        }

        fn load_in(
            &self,
            text: &str,
            words: &[&str],
            around: &Surroundings,
        ) -> Result<Loaded, String> {
            let path = self.0.path().join("c.toml");
            std::fs::write(&path, text).unwrap();
            let path = path.to_str().unwrap();
            let words: Vec<OsString> =
                ["run", "--config", path].iter().chain(words).map(OsString::from).collect();
            let command = || crate::cli::command().find_subcommand("run").cloned().unwrap();
            let prefix = format!("{}/", self.0.path().display());
            load(command, words, around).map_err(|error| error.to_string().replace(&prefix, ""))
        }

        fn why(&self, text: &str) -> String {
            self.load(text, &["x"]).unwrap_err()
        }
    }

    fn from(loaded: &Loaded, name: &str) -> String {
        let setting = loaded.settings.iter().find(|setting| setting.name == name).unwrap();
        let source = setting.source.to_string();
        let source = source.rsplit('/').next().unwrap_or_default();
        format!("{} from {source}", setting.values.join(","))
    }

    const FULL: &str = r#"
command = ["node", "app.js"]
workers = 3
stay = true
sticky-bound = 1.25
graceful-timeout = "5s"
stop-exit-codes = [0, 3]
queue-limit = 16

[env]
MODE = "plain"
LINES = "a\nb"
PORT = 80

[[listen]]
address = ":8080"
program = "3000"
policy = "ip"

[[listen]]
address = "127.0.0.1:81"

[profile.dev]
workers = "2x"
command = ["node", "--inspect", "app.js"]
[profile.dev.env]
MODE = "dev"
"#;

    #[test]
    fn a_file_says_what_flags_say() {
        let folder = Folder::new();
        let loaded = folder.load(FULL, &[]).unwrap();
        let config = &loaded.config;
        assert_eq!(config.command, ["node", "app.js"]);
        assert_eq!((config.workers.count, policy_name(config.core.policy)), (3, "least"));
        assert_eq!(policies(&loaded), ["ip", "least"]);
        let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, [":8080=:3000", "127.0.0.1:81"]);
        assert_eq!(config.core.graceful_timeout.as_secs(), 5);
        assert!(config.core.restart.stay && config.core.stop_exit_codes.contains(3));
        assert_eq!((config.core.sticky_bound, config.core.queue_limit), (Some(1250), 16));
        let env: Vec<_> = config.env.iter().map(|(n, v)| (n.to_str(), v.to_str())).collect();
        let pair = |name, value| (Some(name), Some(value));
        assert_eq!(env, [pair("LINES", "a\nb"), pair("MODE", "plain"), pair("PORT", "80")]);
        assert_eq!(from(&loaded, "workers"), "3 from c.toml:3");
        assert_eq!(from(&loaded, "policy"), " from default");
        assert_eq!(from(&loaded, "policy.:8080"), "ip from c.toml:18");
        assert_eq!(from(&loaded, "env.MODE"), "plain from c.toml:11");
        assert_eq!(from(&loaded, "soak"), "1s from default");
        assert!(config.file.ends_with("c.toml"), "{}", config.file);
    }

    fn policies(loaded: &Loaded) -> Vec<&'static str> {
        let config = &loaded.config;
        config.listen.iter().map(|spec| policy_name(config.policy_of(spec))).collect()
    }

    /// `[[listen]]` of these addresses and policies, the first on lines 1 to 3, the next on 4 to 6, …
    fn listens(all: &[(&str, &str)]) -> String {
        let one = |(address, policy): &(&str, &str)| {
            let policy =
                if policy.is_empty() { "#".into() } else { format!("policy = \"{policy}\"") };
            format!("[[listen]]\naddress = \"{address}\"\n{policy}\n")
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn each_address_may_have_its_own_policy() {
        let folder = Folder::new();
        let text = listens(&[(":80=3000", ""), (":81", "ip"), (":82", "rr")]);
        let loaded = folder.load(&text, &["x"]).unwrap();
        assert_eq!(policies(&loaded), ["least", "ip", "rr"]);
        assert_eq!(from(&loaded, "policy.:81"), "ip from c.toml:6");
        assert_eq!(from(&loaded, "policy.:82"), "rr from c.toml:9");
        assert!(!loaded.settings.iter().any(|one| one.name == "policy.:80"), "it has none");
        assert!(!changes_at_reload("policy.:81"));
        // -p is for those without.
        let loaded = folder.load(&text, &["-p", "rr", "x"]).unwrap();
        assert_eq!(policies(&loaded), ["rr", "ip", "rr"]);
        assert_eq!(loaded.config.policies(), [Policy::Rr, Policy::Ip]);
        assert_eq!(from(&loaded, "policy"), "rr from flag");
        // Other addresses have nothing of the file's.
        let loaded = folder.load(&text, &["-l", ":80", "-l", ":81", "x"]).unwrap();
        assert_eq!(policies(&loaded), ["least", "least"]);
        assert!(!loaded.settings.iter().any(|one| one.name.starts_with("policy.")));
    }

    #[test]
    fn policies_of_addresses_beside_other_settings() {
        let folder = Folder::new();
        let text = listens(&[(":80=3000", ""), (":81", "ip"), (":82", "rr")]);
        // A profile's list replaces the whole list.
        let profile = "[profile.dev]\n[[profile.dev.listen]]\naddress = \":90\"\npolicy = \"rr\"\n";
        let both = text + profile;
        let loaded = folder.load(&both, &["--profile", "dev", "x"]).unwrap();
        assert_eq!(policies(&loaded), ["rr"]);
        assert_eq!(from(&loaded, "policy.:90"), "rr from c.toml:13, profile dev");
        // What needs one that sticks is content with one address of several.
        assert!(folder.load(&both, &["--sticky-bound", "1.25", "x"]).is_ok());
        let why =
            folder.load(&both, &["--profile", "dev", "--sticky-bound", "1.25", "x"]).unwrap_err();
        assert_eq!(
            why,
            "--sticky-bound limits sticky clients, and policy rr (c.toml:13) has none; use ip there"
        );
        let all = listens(&[(":80", "rr"), (":81", "ip")]);
        let why = folder.load(&all, &["--adapter", "listen-fds", "x"]).unwrap_err();
        assert!(why.contains("so policy rr (c.toml:3) cannot deal; use -p shared"), "{why}");
        // Nobody is left for it.
        for policy in ["shared", "rr"] {
            let why = folder.load(&all, &["-p", policy, "x"]).unwrap_err();
            let wanted = "is for addresses without a policy of their own, and each has one (c.toml:3, \
                          c.toml:6); leave it out, or change those lines";
            assert_eq!(why, format!("-p {policy} {wanted}"));
        }
        let twice = folder.why(&listens(&[(":80", ""), (":80", "ip")]));
        assert_eq!(twice, "-l :80: given twice");
        // All of one kind that deals nothing: as if it had been said once.
        let loaded =
            folder.load(&listens(&[(":80", "shared"), (":81", "shared")]), &["x"]).unwrap();
        assert_eq!(loaded.config.core.policy, Policy::Shared);
        assert!(
            folder
                .why(&("max-active = 3\n".to_owned() + &listens(&[(":80", "shared")])))
                .starts_with("--max-active counts what is dealt, and -p shared deals nothing")
        );
    }

    #[test]
    fn what_is_dealt_and_what_is_not_cannot_be_mixed() {
        let folder = Folder::new();
        for (all, flags, wanted) in [
            (
                listens(&[(":80", "ip"), (":81", "shared")]),
                [].as_slice(),
                "c.toml:6: policy shared for :81, but ip for :80 (c.toml:3): where workers accept by \
                 themselves they do so on all",
            ),
            (
                listens(&[(":80", "shared"), (":81", "reuseport")]),
                &[],
                "c.toml:6: policy reuseport for :81, but shared for :80 (c.toml:3): where",
            ),
            (
                listens(&[(":80", "shared"), (":81", "")]),
                &[],
                "c.toml:3: policy shared for :80, but least for :81 (which has no policy of its own): ",
            ),
            (
                listens(&[(":80", ""), (":81", "rr")]),
                &["-p", "reuseport"],
                "c.toml:6: policy rr for :81, but reuseport for :80 (which has no policy of its own): ",
            ),
        ] {
            let words: Vec<&str> = flags.iter().copied().chain(["x"]).collect();
            let why = folder.load(&all, &words).unwrap_err();
            assert!(why.starts_with(wanted), "{all}: {why}");
            assert!(why.contains("where workers accept by themselves they do so on"), "{why}");
            assert!(why.ends_with("; give both least, rr or ip, or run two croupiers"), "{why}");
        }
    }

    #[test]
    fn a_flag_wins_over_a_profile_over_the_file() {
        let folder = Folder::new();
        let dev = folder.load(FULL, &["--profile", "dev"]).unwrap();
        assert_eq!(dev.config.workers.count, 8);
        assert_eq!(from(&dev, "workers"), "2x from c.toml:24, profile dev");
        assert_eq!(from(&dev, "env.MODE"), "dev from c.toml:27, profile dev");
        assert_eq!(from(&dev, "env.PORT"), "80 from c.toml:13");
        assert_eq!(from(&dev, "command"), "node,--inspect,app.js from c.toml:25, profile dev");
        let words = [
            "--profile",
            "dev",
            "-w",
            "1",
            "-e",
            "MODE=flag",
            "-l",
            ":1",
            "-p",
            "ip",
            "sh",
            "-c",
            "x",
        ];
        let flag = folder.load(FULL, &words).unwrap();
        assert_eq!(flag.config.workers.count, 1);
        assert_eq!(flag.config.command, ["sh", "-c", "x"]);
        assert_eq!(flag.config.listen.len(), 1, "a list is replaced, not joined");
        assert_eq!(from(&flag, "env.MODE"), "MODE=flag from flag".replace("MODE=", ""));
        let last = flag.config.env.iter().rev().find(|(name, _)| name == "MODE").unwrap();
        assert_eq!(last.1, "flag");
        // A platform's variable is part of the environment.
        let platform = Surroundings { web_concurrency: Some("2".into()), ..around() };
        let loaded = folder.load_in(FULL, &[], &platform).unwrap();
        assert_eq!(from(&loaded, "workers"), "2 from WEB_CONCURRENCY");
        let loaded = folder.load_in(FULL, &["-w", "5"], &platform).unwrap();
        assert_eq!(
            (loaded.config.workers.count, from(&loaded, "workers").as_str()),
            (5, "5 from flag")
        );
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let folder = Folder::new();
        for (text, wanted) in [
            ("workers = 2\nworker = 3", "c.toml:2: worker is no setting; did you mean workers?"),
            ("queue_limit = 3", "c.toml:1: queue_limit is no setting; did you mean queue-limit?"),
            ("zebra = 1", "c.toml:1: zebra is no setting"),
            ("\npolicy = \"fair\"", "c.toml:2: policy fair: the policies are least, rr, ip"),
            ("soak = 5", "c.toml:1: soak 5: the unit is missing: 5s or 5ms?"),
            ("soak = true", "c.toml:1: soak takes T, not true or false"),
            ("stay = \"yes\"", "c.toml:1: stay is true or false"),
            ("queue-limit = 0", "c.toml:1: queue-limit 0: 0 is not in 1..="),
            ("workers = [1]", "c.toml:1: workers takes N, not a list"),
            ("workers = 0x1f", "c.toml:1: workers takes N, not a number in another base than ten"),
            ("env-file = [true]", "c.toml:1: env-file is a list of PATH"),
            ("command = \"node\"", "c.toml:1: a command is a list of words: command = [\"node\""),
            ("command = []", "c.toml:1: the command is empty"),
            ("command = [1]", "c.toml:1: the command's words are strings"),
            ("listen = \":x\"", "c.toml:1: listen :x: an address is :8080, 127.0.0.1:8080, "),
            ("listen = [true]", "c.toml:1: an address is a string, or a table [[listen]] with"),
            ("[[listen]]\naddress = true", "c.toml:2: address must be a string"),
            (
                "[[listen]]\nadress = \":80\"",
                "c.toml:2: [[listen]] has no key adress; did you mean address?",
            ),
            ("[[listen]]\npolicy = \"rr\"", "c.toml:1: [[listen]] needs an address"),
            (
                "[[listen]]\naddress=\":1\"\npolicy=\"fair\"",
                "c.toml:3: policy fair: the policies are",
            ),
            ("env = 3", "c.toml:1: variables are a table"),
            ("[env]\nA = [1]", "c.toml:2: A: a variable's value is a string"),
            ("[env]\n\"A=B\" = 1", "c.toml:2: \"A=B\" is no name of a variable"),
            ("[env]\nA = \"\\u0000\"", "c.toml:2: A: a value cannot contain \\0"),
            ("config = \"x\"", "c.toml:1: config says what is read of the file: it is a flag only"),
            ("profile = 3", "c.toml:1: profiles are tables"),
            ("profile.dev = 3", "c.toml:1: a profile is a table, as in [profile.dev]"),
            ("[profile.dev]\nsoak = \"x\"", "c.toml:2: soak x: a time is"),
            ("workers = = 3", "c.toml:1: this is not TOML: "),
            ("workers = 1\nworkers = 2", "c.toml:2: this is not TOML: duplicate key"),
            ("soak = \"1s\"\nmax-lifetime = \"0\"", "--max-lifetime 0: leave it away"),
        ] {
            let why = folder.why(text);
            assert!(why.starts_with(wanted), "{text}: {why}");
        }
        assert!(folder.load("", &[]).unwrap_err().starts_with("COMMAND is missing"));
        let strange = folder.load(FULL, &["--profile", "prod"]).unwrap_err();
        assert!(strange.contains("--profile prod: there is no such; the profiles of"), "{strange}");
        assert!(strange.ends_with("are dev"), "{strange}");
        let none = folder.load("command = [\"x\"]", &["--profile", "prod"]).unwrap_err();
        assert!(none.ends_with("c.toml has no profile"), "{none}");
    }

    #[test]
    fn what_a_reload_can_change_are_settings() {
        let command = crate::cli::command();
        let run = command.find_subcommand("run").unwrap();
        for name in AT_RELOAD.iter().filter(|name| **name != "command") {
            let known = run.get_arguments().any(|arg| arg.get_long() == Some(name));
            assert!(known, "{name} is no flag any more: take it out of AT_RELOAD");
        }
        assert!(AT_RELOAD.is_sorted());
        assert!(changes_at_reload("env.MODE") && !changes_at_reload("policy"));
    }

    #[test]
    fn only_files_are_read_and_not_for_ever() {
        let folder = Folder::new();
        let at = |name: &str| folder.0.path().join(name).to_str().unwrap().to_owned();
        let load = |path: &str| {
            let words = ["run", "--config", path, "x"].map(OsString::from).into();
            let command = || crate::cli::command().find_subcommand("run").cloned().unwrap();
            load(command, words, &around()).map_err(|error| error.to_string())
        };
        assert_eq!(load("/dev/null").unwrap().config.workers.count, 4);
        assert!(load(&at("none")).unwrap_err().contains("none: cannot be read: No such file"));
        assert!(load(&at("")).unwrap_err().contains("must be a file"));
        nix::unistd::mkfifo(at("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(
            load(&at("fifo")).unwrap_err().contains("must be a file, as a reload reads it again")
        );
        std::fs::write(at("long"), "#".repeat(1 << 20) + "#").unwrap();
        assert!(load(&at("long")).unwrap_err().contains("is longer than 1048576 bytes"));
        std::fs::write(at("bytes"), b"# \n# \xff\n").unwrap();
        assert!(load(&at("bytes")).unwrap_err().ends_with("bytes:2: this is not UTF-8"));
    }
}
