//! [`Reader`]: takes settings out of the TOML tree and the environment, and keeps account of what nobody took.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use toml::{Table, Value};

use crate::config::{Problem, secret::Secret};

const PREFIX: &str = "KEYSTEAD_";
/// Read by the command line, not here.
const RESERVED: [&str; 1] = ["KEYSTEAD_CONFIG"];

/// Environment variables that concern the server.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process whose name begins with `KEYSTEAD_`.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect()
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().filter(|(name, _)| !RESERVED.contains(&name.as_str())).collect())
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// The settings that nobody has taken yet, and the problems found so far.
pub(super) struct Reader {
    table: Table,
    environment: Environment,
    problems: Vec<Problem>,
    /// The files that secrets were read from.
    pub(super) secret_files: Vec<PathBuf>,
}

/// One section of the settings.
pub(super) struct Section<'a> {
    reader: &'a mut Reader,
    name: &'static str,
}

impl Reader {
    pub(super) fn new(table: Table, environment: Environment) -> Self {
        Self { table, environment, problems: Vec::new(), secret_files: Vec::new() }
    }

    /// A section by its name; the empty name is the top level.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_> {
        Section { reader: self, name }
    }

    /// All problems. What nobody took is unknown, and each is a problem, too.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (key, value) in self.table {
            match value {
                Value::Table(section) => {
                    let unknown = section.keys().map(|name| unknown(format!("{key}.{name}")));
                    self.problems.extend(unknown);
                }
                _ => self.problems.push(unknown(key)),
            }
        }
        self.problems.extend(self.environment.0.into_keys().map(|name| {
            let mut problem = unknown(name);
            problem.text.push_str(
                " (Kubernetes invents such variables for a Service named keystead unless enableServiceLinks is false)",
            );
            problem
        }));
        self.problems
    }

    fn take(&mut self, section: &str, key: &str) -> Option<Value> {
        if section.is_empty() {
            return self.table.remove(key);
        }
        self.table.get_mut(section)?.as_table_mut()?.remove(key)
    }
}

fn unknown(setting: String) -> Problem {
    Problem { setting, text: "there is no such setting".to_owned() }
}

impl Section<'_> {
    /// A setting with a default.
    pub(super) fn value<T: Setting>(&mut self, key: &str, default: impl FnOnce() -> T) -> T {
        self.optional(key).unwrap_or_else(default)
    }

    /// A setting that may be absent.
    pub(super) fn optional<T: Setting>(&mut self, key: &str) -> Option<T> {
        // Taken even if the environment overrides it, so that it does not count as unknown.
        let written = self.reader.take(self.name, key);
        let variable = self.variable(key);
        let (setting, result) = match (self.reader.environment.0.remove(&variable), written) {
            (Some(text), _) => (variable, T::from_text(&text)),
            (None, Some(value)) => (self.path(key), T::from_toml(value)),
            (None, None) => return None,
        };
        result.map_err(|text| self.reader.problems.push(Problem { setting, text })).ok()
    }

    /// A secret, written inline or in the file that `KEY_file` names.
    pub(super) fn secret(&mut self, key: &str) -> Option<Secret> {
        let inline: Option<Secret> = self.optional(key);
        let file_key = format!("{key}_file");
        let file: Option<PathBuf> = self.optional(&file_key);
        match (inline, file) {
            (Some(_), Some(_)) => {
                self.problem(key, format!("set either {key} or {file_key}, not both"));
                None
            }
            (None, Some(path)) => match read_secret(&path) {
                Ok(secret) => {
                    self.reader.secret_files.push(path);
                    Some(secret)
                }
                Err(text) => {
                    self.problem(&file_key, text);
                    None
                }
            },
            (inline, None) => inline,
        }
    }

    /// Notes a problem with a setting of this section.
    pub(super) fn problem(&mut self, key: &str, text: impl Into<String>) {
        let setting = self.path(key);
        self.reader.problems.push(Problem { setting, text: text.into() });
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn variable(&self, key: &str) -> String {
        format!("{PREFIX}{}", self.path(key).replace('.', "_").to_uppercase())
    }
}

/// A secret's file, without the line break at its end.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// A type that settings may have.
pub(super) trait Setting: Sized {
    /// Reads it from the file.
    fn from_toml(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) => Self::from_text(&text),
            other => Err(format!("expected text, found {}", other.type_str())),
        }
    }

    /// Reads it from an environment variable.
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A type whose `FromStr` says what is wrong.
macro_rules! parsed_settings {
    ($($type:ty),+ $(,)?) => {
        $(impl Setting for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                Self::from_str(text).map_err(|error| error.to_string())
            }
        })+
    };
}

parsed_settings!(
    SocketAddr,
    String,
    crate::config::log::LogFormat,
    crate::config::registration::PasswordPolicy,
    crate::http::client_address::IpNetwork,
    ruma::OwnedServerName,
    ruma::OwnedUserId,
    ruma::RoomVersionId,
);

impl Setting for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path must not be empty".to_owned()) } else { Ok(text.into()) }
    }
}

impl Setting for Secret {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a secret must not be empty".to_owned()) } else { Ok(Self::new(text)) }
    }
}

impl Setting for bool {
    fn from_toml(value: Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("expected true or false, found {}", value.type_str()))
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("expected true or false, found {text:?}"))
    }
}

impl Setting for u64 {
    fn from_toml(value: Value) -> Result<Self, String> {
        let number =
            value.as_integer().ok_or_else(|| format!("expected a number, found {}", value.type_str()))?;
        Self::try_from(number).map_err(|_| "must not be negative".to_owned())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("expected a whole number, found {text:?}"))
    }
}

impl Setting for f64 {
    fn from_toml(value: Value) -> Result<Self, String> {
        // Also of 0 and 1, which TOML takes for whole numbers.
        match value {
            Value::Float(number) => Ok(number),
            Value::Integer(number) => Self::from_text(&number.to_string()),
            other => Err(format!("expected a number, found {}", other.type_str())),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("expected a number, found {text:?}"))
    }
}

impl Setting for u32 {
    fn from_toml(value: Value) -> Result<Self, String> {
        u64::from_toml(value)?.try_into().map_err(|_| "is too large".to_owned())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        u64::from_text(text)?.try_into().map_err(|_| "is too large".to_owned())
    }
}

impl Setting for usize {
    fn from_toml(value: Value) -> Result<Self, String> {
        u64::from_toml(value)?.try_into().map_err(|_| "is too large".to_owned())
    }

    fn from_text(text: &str) -> Result<Self, String> {
        u64::from_text(text)?.try_into().map_err(|_| "is too large".to_owned())
    }
}

/// Durations are written in whole seconds, and their names end in `_seconds`.
impl Setting for Duration {
    fn from_toml(value: Value) -> Result<Self, String> {
        u64::from_toml(value).map(Self::from_secs)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        u64::from_text(text).map(Self::from_secs)
    }
}

/// In the environment, a list is separated by commas.
impl<T: Setting> Setting for Vec<T> {
    fn from_toml(value: Value) -> Result<Self, String> {
        match value {
            Value::Array(items) => items.into_iter().map(T::from_toml).collect(),
            single => Ok(vec![T::from_toml(single)?]),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }
}
