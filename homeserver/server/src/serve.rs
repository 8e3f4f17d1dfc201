//! `keystead serve`: from the start text to the last answered request.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use tracing::{info, warn};

use crate::{
    api,
    app::{App, StartError},
    config::{Settings, log::LogFormat},
    heartbeat, housekeeping,
    http::{
        listener::{ListenError, Listeners},
        service::Service,
    },
    jobs,
    lifecycle::StopSignals,
    media::place::{self, PlaceError},
    push,
    telemetry::log::{self, LogError},
};

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket or TLS could not be set up.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Logging could not be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The media are elsewhere.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Signals could not be taken over.
    #[error("the stop signals cannot be handled")]
    Signals(#[source] io::Error),
    /// Part of the server could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Runs the server until a signal stops it.
///
/// The first SIGTERM or SIGINT stops softly: readiness fails; after `server.stop_delay_seconds` the listeners close, long-polls
/// answer, and open requests finish within `server.stop_grace_seconds`. A second one stops at once.
///
/// # Errors
///
/// [`ServeError`] when the server could not start.
pub async fn run(settings: Settings) -> Result<(), ServeError> {
    log::start(&settings.log)?;
    let mut signals = StopSignals::install().map_err(ServeError::Signals)?;
    let listeners = Listeners::bind(&settings).await?;
    let (delay, grace) = (settings.server.stop_delay, settings.server.stop_grace);
    let app = App::start(settings).await?;
    place::check(&app).await?;
    app.shutdown.tasks().spawn(jobs::run(Arc::clone(&app)));
    app.shutdown.tasks().spawn(housekeeping::run(Arc::clone(&app)));
    app.shutdown.tasks().spawn(housekeeping::note_relations(Arc::clone(&app)));
    app.shutdown.tasks().spawn(heartbeat::run(Arc::clone(&app)));
    app.shutdown.tasks().spawn(push::run(Arc::clone(&app)));
    welcome(&app.settings, &listeners);

    let (shutdown, told) = (app.shutdown.clone(), Arc::clone(&app));
    let mut serving = tokio::spawn(listeners.serve(Service::new(app, api::routes())));
    tokio::select! {
        () = signals.next() => {}
        _ = &mut serving => {}
    }
    info!(delay_seconds = delay.as_secs(), grace_seconds = grace.as_secs(), "stopping");
    shutdown.leave();
    let drain = async {
        tokio::time::sleep(delay).await;
        shutdown.begin();
        let _ = serving.await;
        shutdown.drained().await;
    };
    tokio::select! {
        () = drain => info!("stopped"),
        () = tokio::time::sleep(delay + grace) => warn!("some requests did not finish within the grace period"),
        () = signals.next() => warn!("stopped at once by a second signal"),
    }
    told.traces.finish().await;
    Ok(())
}

/// Tells people where the server is and what to do next; machines that read the log get one line.
fn welcome(settings: &Settings, listeners: &Listeners) {
    let addresses: Vec<String> = listeners.addresses().iter().map(ToString::to_string).collect();
    info!(server.name = %settings.server.name, listen = addresses.join(", "), tls = listeners.has_tls(), "serving");
    if settings.log.format == LogFormat::Text {
        // Whoever closed the output does not want to read it.
        let _ = writeln!(io::stdout(), "{}", greeting(settings));
    }
}

/// What to do next, for a person.
fn greeting(settings: &Settings) -> String {
    let url = &settings.server.public_base_url;
    let server = if url == "http://127.0.0.1:8008" { String::new() } else { format!(" --server {url}") };
    let (accounts, begin) = if settings.registration.open {
        ("Anybody who reaches it may register.", "register")
    } else {
        (
            "Registration is closed (registration.open): make accounts with 'keystead admin create-user NAME', or give\n\
             people a token from 'keystead admin registration-token create'.",
            "login",
        )
    };
    format!(
        "\nKeystead serves {name} at {url}\n\n{accounts}\n\
         Talk from the command line, each person with a folder of their own:\n\n\
         \x20   keybox --home ./alice --user alice{server} {begin}\n\
         \x20   keybox --home ./bob --user bob{server} {begin}\n\n\
         'keybox --help' shows what comes then: create, invite, join, send, listen. Or point any Matrix client at\n\
         {url}. Ctrl-C stops the server.\n",
        name = settings.server.name,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reader::Environment;

    #[test]
    fn the_greeting_says_what_works() {
        let closed = greeting(&Settings::from_environment(Environment::default()).unwrap());
        assert!(closed.contains("keystead admin create-user"), "{closed}");
        assert!(closed.contains("keybox --home ./alice --user alice login"), "{closed}");
        let environment = Environment::from([
            ("KEYSTEAD_REGISTRATION_OPEN", "true"),
            ("KEYSTEAD_SERVER_PUBLIC_BASE_URL", "https://chat.example"),
        ]);
        let open = greeting(&Settings::from_environment(environment).unwrap());
        assert!(open.contains("--user alice --server https://chat.example register"), "{open}");
    }
}
