//! Who the workers are: `--user` and `--group`, looked up.
//!
//! Promises: a number needs no entry in the user database. Never does: change who anybody is.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};

use super::ConfigError;

/// Who the workers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: Uid,
    /// Group.
    pub gid: Gid,
    /// Supplementary groups.
    pub groups: Vec<Gid>,
    /// `USER` and `LOGNAME`; `None` for a number without a name, or when only `--group` was given.
    pub user_name: Option<String>,
    /// `HOME`, as [`Self::user_name`].
    pub home: Option<PathBuf>,
}

pub(super) fn resolve_ids(
    user: Option<&str>,
    group: Option<&str>,
) -> Result<Option<Ids>, ConfigError> {
    if user.is_none() && group.is_none() {
        return Ok(None);
    }
    let found_user = user.map(find_user).transpose()?;
    let found_group = group.map(find_group).transpose()?;
    let current = (nix::unistd::getuid(), nix::unistd::getgid());
    let (uid, user_gid, account) = found_user.unwrap_or((current.0, current.1, None));
    let gid = found_group.unwrap_or(user_gid);
    if !geteuid().is_root() && (uid, gid) != current {
        let (flag, value) = if user.is_some() { ("--user", user) } else { ("--group", group) };
        let why = "only root can start workers as somebody else; run as root, or without it";
        return Err(ConfigError::value(flag, value.unwrap_or_default(), why));
    }
    let groups = account
        .as_ref()
        .and_then(|account| CString::new(account.name.as_bytes()).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    let (user_name, home) = account.map(|account| (account.name, account.dir)).unzip();
    Ok(Some(Ids { uid, gid, groups, user_name, home }))
}

/// The name of a user, or the number where the user database has none.
#[must_use]
pub fn user_name(uid: Uid) -> String {
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

fn find_user(text: &str) -> Result<(Uid, Gid, Option<User>), ConfigError> {
    let account = match text.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    match (account, text.parse::<u32>()) {
        (Ok(Some(account)), _) => Ok((account.uid, account.gid, Some(account))),
        // A number needs no entry in the user database (containers).
        (Ok(None) | Err(_), Ok(number)) => Ok((Uid::from_raw(number), Gid::from_raw(number), None)),
        (Ok(None), Err(_)) => {
            Err(ConfigError::value("--user", text, "no such user; see getent passwd"))
        }
        (Err(error), Err(_)) => {
            Err(ConfigError::value("--user", text, format!("cannot look it up: {error}")))
        }
    }
}

fn find_group(text: &str) -> Result<Gid, ConfigError> {
    if let Ok(number) = text.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(ConfigError::value("--group", text, "no such group; see getent group")),
        Err(error) => {
            Err(ConfigError::value("--group", text, format!("cannot look it up: {error}")))
        }
    }
}
