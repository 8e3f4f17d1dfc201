//! The configuration: one TOML file, the environment over it, every problem reported at once.
//!
//! Each setting is read in one line of its section's file, which fixes its name, its type and its default. The
//! environment variable of `section.name` is `KEYSTEAD_SECTION_NAME`.

pub mod auth;
pub mod database;
pub mod keybox;
pub mod limits;
pub mod log;
pub mod media;
pub mod presence;
pub mod push;
pub mod reader;
pub mod registration;
pub mod rooms;
pub mod secret;
pub mod server;
pub mod support;
pub mod traces;
pub mod url_preview;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use self::{
    auth::AuthSettings,
    database::DatabaseSettings,
    keybox::KeyboxSettings,
    limits::LimitSettings,
    log::LogSettings,
    media::MediaSettings,
    presence::PresenceSettings,
    push::PushSettings,
    reader::{Environment, Reader},
    registration::RegistrationSettings,
    rooms::RoomSettings,
    server::ServerSettings,
    support::SupportSettings,
    traces::TraceSettings,
    url_preview::UrlPreviewSettings,
};

/// All settings, read and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Password hashing.
    pub auth: AuthSettings,
    /// The folder of what the server keeps outside of the database.
    pub data_dir: PathBuf,
    /// The database.
    pub database: DatabaseSettings,
    /// What the server keeps for KeyBoxes.
    pub keybox: KeyboxSettings,
    /// Limits that protect the server.
    pub limits: LimitSettings,
    /// Log lines.
    pub log: LogSettings,
    /// Files that users upload.
    pub media: MediaSettings,
    /// Who may register, and how.
    pub registration: RegistrationSettings,
    /// Whether users see who is there.
    pub presence: PresenceSettings,
    /// How push gateways are told of events.
    pub push: PushSettings,
    /// Rooms.
    pub rooms: RoomSettings,
    /// The files that secrets were read from.
    pub secret_files: Vec<PathBuf>,
    /// Name, listeners and TLS.
    pub server: ServerSettings,
    /// Whom to ask for help.
    pub support: SupportSettings,
    /// Traces by OpenTelemetry.
    pub traces: TraceSettings,
    /// Previews of pages on the web.
    pub url_preview: UrlPreviewSettings,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {0} cannot be read")]
    Read(PathBuf, #[source] io::Error),
    /// The file is not TOML.
    #[error("the configuration file {0} is not valid TOML")]
    Syntax(PathBuf, #[source] toml::de::Error),
    /// Settings are unknown, malformed or contradict each other.
    #[error("{0}")]
    Problems(Problems),
}

/// All that is wrong with a configuration; at least one problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting or the environment variable.
    pub setting: String,
    /// What is wrong with it.
    pub text: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} problem(s)", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {}: {}", problem.setting, problem.text))
    }
}

impl Settings {
    /// Reads the file, if there is one, and the environment over it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], with all problems at once where there are several.
    pub fn load(file: Option<&Path>, environment: Environment) -> Result<Self, ConfigError> {
        let table = match file {
            None => toml::Table::new(),
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Read(path.to_owned(), error))?
                .parse()
                .map_err(|error| ConfigError::Syntax(path.to_owned(), error))?,
        };
        Self::read(table, environment).map_err(ConfigError::Problems)
    }

    /// The defaults with these environment variables over them; tests pass what they need.
    ///
    /// # Errors
    ///
    /// All [`Problems`] at once.
    pub fn from_environment(environment: Environment) -> Result<Self, Problems> {
        Self::read(toml::Table::new(), environment)
    }

    fn read(table: toml::Table, environment: Environment) -> Result<Self, Problems> {
        let mut reader = Reader::new(table, environment);
        let data_dir: PathBuf = reader.section("").value("data_dir", || "data".into());
        let mut settings = Self {
            auth: AuthSettings::read(&mut reader.section("auth")),
            database: DatabaseSettings::read(&mut reader.section("database")),
            keybox: KeyboxSettings::read(&mut reader.section("keybox")),
            limits: LimitSettings::read(&mut reader.section("limits")),
            log: LogSettings::read(&mut reader.section("log")),
            media: MediaSettings::read(&mut reader.section("media"), &data_dir),
            presence: PresenceSettings::read(&mut reader.section("presence")),
            push: PushSettings::read(&mut reader.section("push")),
            registration: RegistrationSettings::read(&mut reader.section("registration")),
            rooms: RoomSettings::read(&mut reader.section("rooms")),
            server: ServerSettings::read(&mut reader.section("server")),
            support: SupportSettings::read(&mut reader.section("support")),
            traces: TraceSettings::read(&mut reader.section("traces")),
            url_preview: UrlPreviewSettings::read(&mut reader.section("url_preview")),
            secret_files: Vec::new(),
            data_dir,
        };
        settings.secret_files.append(&mut reader.secret_files);
        let problems = reader.finish();
        if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
    }
}

#[cfg(test)]
mod tests;
