//! `croupier completions`: the shell's completion of all of this, from the parser's own definition.

use clap::Args;
use clap_complete::Shell;

use super::{Exit, code, command};

const AFTER_HELP: &str = "\
Examples:
  croupier completions bash > /etc/bash_completion.d/croupier
  croupier completions zsh > /usr/local/share/zsh/site-functions/_croupier
  croupier completions fish > ~/.config/fish/completions/croupier.fish";

/// Print a completion script for a shell.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell.
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

pub(super) fn execute(args: &CompletionsArgs) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "croupier", &mut script);
    Exit::with(code::DONE, String::from_utf8_lossy(&script).into_owned())
}
