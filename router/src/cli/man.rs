//! `croupier man`: man pages, from the parser's own definition. `make install` calls it.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use super::{Exit, code, command};

const AFTER_HELP: &str = "\
Examples:
  croupier man /usr/local/share/man/man1
  croupier man . && man ./croupier-run.1";

/// Write the man pages, croupier.1 and one for each command, into a folder.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ManArgs {
    /// The folder. It must exist.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn execute(args: &ManArgs) -> Exit {
    match write(&args.folder) {
        Ok(()) => Exit::code(code::DONE),
        Err((path, error)) => {
            Exit::error(code::FAILED, format!("cannot write {}: {error}", path.display()))
        }
    }
}

fn write(folder: &Path) -> Result<(), (PathBuf, io::Error)> {
    let mut command = command();
    command.build();
    let ours = |one: &&Command| one.get_name() != "help" && !one.is_hide_set();
    let mut pages = vec![("croupier".to_owned(), command.clone())];
    for one in command.get_subcommands().filter(ours) {
        let name = format!("croupier-{}", one.get_name());
        pages.push((name.clone(), one.clone().name(name)));
    }
    for (name, command) in pages {
        let path = folder.join(format!("{name}.1"));
        let page = page(command).map_err(|error| (path.clone(), error))?;
        std::fs::write(&path, page).map_err(|error| (path, error))?;
    }
    Ok(())
}

/// One page. Without the date, which would make every build another.
fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command).manual("croupier").render(&mut page)?;
    Ok(page)
}
