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
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut line).map_err(Failure::Input)?;
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
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
