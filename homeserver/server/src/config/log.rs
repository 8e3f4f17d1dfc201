//! `[log]`: log lines.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

use super::reader::Section;

/// Log lines.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// `log.format`: `text` (default) or `json`.
    pub format: LogFormat,
    /// `log.filter`: a level, or a list of `target=level`; default `info`.
    pub filter: String,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("must be text or json"),
        }
    }
}

impl LogSettings {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let filter = section.value("filter", || "info".to_owned());
        if let Err(error) = EnvFilter::try_new(&filter) {
            section.problem("filter", error.to_string());
        }
        Self { format: section.value("format", || LogFormat::Text), filter }
    }
}
