//! Passwords and passphrases: from the command line, the environment, or the terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use super::failure::Failure;

/// The secret that was given, or one that the person types. Of a terminal it is not shown; otherwise a line of standard
/// input is taken.
pub(super) fn given_or_asked(given: Option<&str>, prompt: &str) -> Result<Zeroizing<String>, Failure> {
    if let Some(given) = given {
        return Ok(Zeroizing::new(given.to_owned()));
    }
    let _hidden = Hidden::start();
    write!(std::io::stderr(), "{prompt}: ").ok();
    // Room for any secret, so that none is left behind by a reallocation.
    let mut line = Zeroizing::new(String::with_capacity(2048));
    std::io::stdin().lock().read_line(&mut line).map_err(Failure::Input)?;
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

/// A secret that a person chooses: one who types it on a terminal types it twice, since a slip would shut them out.
pub(super) fn chosen_secret(given: Option<&str>, prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let chosen = given_or_asked(given, prompt)?;
    if given.is_none() && std::io::stdin().is_terminal() && given_or_asked(None, "Once more")? != chosen {
        return Err(Failure::TypedDifferently);
    }
    Ok(chosen)
}

/// While it lives, the terminal does not show what is typed.
struct Hidden {
    is_terminal: bool,
}

impl Hidden {
    fn start() -> Self {
        let is_terminal = std::io::stdin().is_terminal();
        if is_terminal {
            stty("-echo");
        }
        Self { is_terminal }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if self.is_terminal {
            stty("echo");
            writeln!(std::io::stderr()).ok();
        }
    }
}

fn stty(setting: &str) {
    // Without the tool the text is shown: a nuisance, not a failure.
    Command::new("stty").arg(setting).stdin(Stdio::inherit()).stderr(Stdio::null()).status().ok();
}
