//! What a reload reads again: the file, and with it what the next generation is.
//!
//! Owns the settings that are in force, those that wait for the next reload, and those to go back to.
//! Promises: what cannot be used, or cannot change while croupier runs, is named and changes nothing;
//! a reload that fails leaves the settings from before in force. Never does: decide when.

use croupier_core::event::Generation;

use super::run::Primary;
use super::start::Launch;
use crate::adapter;
use crate::config::{Loaded, Origin, RunConfig, Setting, Source, changes_at_reload};

/// See the module.
#[derive(Debug)]
pub(super) struct Versions {
    origin: Origin,
    settings: Vec<Setting>,
    /// Of the next reload that begins.
    next: Option<Version>,
    /// From before the reload that is under way.
    before: Option<(RunConfig, Vec<Setting>)>,
    /// The last generation that held.
    held: Generation,
    /// One that did not, whose workers are told to end as it said.
    failed: Option<Generation>,
}

#[derive(Debug)]
struct Version {
    launch: Launch,
    settings: Vec<Setting>,
    /// What the config file says otherwise.
    changed: Vec<String>,
    /// The `--env-file`s, if what they say is otherwise.
    variables: Option<String>,
}

impl Versions {
    pub(super) const fn new(origin: Origin, settings: Vec<Setting>) -> Self {
        Self { origin, settings, next: None, before: None, held: Generation(1), failed: None }
    }
}

impl Primary {
    /// Before a reload: reads the file again. What is wrong with it is said, and nothing is changed.
    pub(super) fn read_again(&mut self) -> Result<(), String> {
        let kept = if self.versions.origin.rereads(&self.versions.settings) {
            self.next_version().map(Some)
        } else {
            Ok(None)
        };
        match kept {
            Ok(Some(version)) => {
                self.core.reconfigure_at_reload(version.launch.config.core);
                self.versions.next = Some(version);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(why) => Err(format!("no reload, and nothing is changed: {why}")),
        }
    }

    fn next_version(&self) -> Result<Version, String> {
        let Loaded { mut config, settings, .. } =
            self.versions.origin.read().map_err(|error| error.to_string().trim_end().to_owned())?;
        let old = |name: &str| self.versions.settings.iter().find(|one| one.name == name);
        let new = |name: &str| settings.iter().find(|one| one.name == name);
        let values = |one: Option<&Setting>| one.map(|one| one.values.clone()).unwrap_or_default();
        let mut names: Vec<&str> =
            self.versions.settings.iter().chain(&settings).map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| values(old(name)) != values(new(name)));
        for name in &names {
            if changes_at_reload(name) {
                continue;
            }
            let known = new(name).filter(|one| one.source != Source::Default);
            let place = known
                .map_or_else(|| self.versions.origin.to_string(), |one| one.source.to_string());
            // This goes to the log, and to whoever asked.
            let text = |one: Option<&Setting>| match (values(one), one) {
                (list, _) if list.is_empty() => "not given".to_owned(),
                (_, Some(one)) if one.is_secret() => "(not shown)".to_owned(),
                (list, _) => list.join(", "),
            };
            return Err(format!(
                "{place}: {name} cannot change while croupier runs: it was {}, and is {}; take that \
                 back, or stop croupier and start it again",
                text(old(name)),
                text(new(name))
            ));
        }
        let others = config.care.variables != self.config.care.variables;
        let variables =
            (others && !names.contains(&"env-file")).then(|| values(new("env-file")).join(", "));
        let changed = names.iter().map(|name| (*name).to_owned()).collect();
        // Only what was read can have changed; this would be another without a reason of the user's.
        config.name.clone_from(&self.config.name);
        let resolved = adapter::resolve(&config).map_err(|error| error.to_string())?;
        let launch = Launch { resolved, config: Box::new(config) };
        Ok(Version { launch, settings, changed, variables })
    }

    /// A reload begins: with what was read last, if there is something.
    pub(super) fn version_begins(&mut self, generation: Generation) {
        let Some(version) = self.versions.next.take() else { return };
        let Version { launch, settings, changed, variables } = version;
        if !changed.is_empty() {
            let (file, changed) = (self.versions.origin.to_string(), changed.join(", "));
            self.step(&format!("{file} changes {changed}"));
        }
        if let Some(files) = variables {
            self.step(&format!("the variables of {files} have changed"));
        }
        let config = std::mem::replace(&mut self.config, (*launch.config).clone());
        let settings = std::mem::replace(&mut self.versions.settings, settings);
        self.versions.before = Some((config, settings));
        self.launcher.begin(generation, launch);
        self.note_settings();
    }

    /// Others are in force: what does not ask for them whenever it needs them hears of it.
    fn note_settings(&mut self) {
        self.note_max_rss();
        self.note_report();
    }

    pub(super) fn version_holds(&mut self, generation: Generation) {
        self.versions.before = None;
        self.versions.held = generation;
    }

    /// The reload failed; with `kept`, some slots go on with what it brought.
    pub(super) fn version_fails(&mut self, generation: Generation, kept: u16) {
        let Some((config, settings)) = self.versions.before.take() else { return };
        self.config = config;
        self.versions.settings = settings;
        self.note_settings();
        if kept == 0 {
            self.versions.failed = Some(generation);
        }
    }

    /// Nobody leaves any more because of a reload: everybody is of the last one that held, or of later ones.
    pub(super) fn version_is_over(&mut self) {
        if let Some(failed) = self.versions.failed.take() {
            self.launcher.forget(failed);
        }
        self.launcher.forget_before(self.versions.held);
    }
}
