//! Sending and receiving files, with a bar that shows how far it has come.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::failure::Failure;
use super::output::Output;
use super::rooms::find_room;
use crate::client::{Client, Progress, Transfer};

/// How a transfer looks: what is done of all, how fast, and how long it will take.
const STYLE: &str = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

pub(super) async fn send(
    client: &mut Client,
    output: &Output,
    room: &str,
    path: &Path,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let bar = bar(output);
    let sent = client.send_file(&room_id, path, &progress(&bar)).await;
    bar.finish_and_clear();
    let sent = sent?;
    output.notices(client.take_notices());
    let text = format!("Sent {} ({} bytes) as {}.", sent.name, sent.size, sent.event_id);
    let value = json!({
        "event_id": sent.event_id, "room_id": room_id, "name": sent.name, "size": sent.size, "url": sent.url,
    });
    output.result(&text, &value);
    Ok(())
}

/// What is to be received, and where to.
pub(super) struct Wanted<'a> {
    pub(super) event_id: &'a str,
    /// The small version of a picture, not the picture.
    pub(super) thumbnail: bool,
    pub(super) to: Option<&'a Path>,
    /// Seconds for a missing resource key.
    pub(super) wait: u64,
}

pub(super) async fn download(
    client: &mut Client,
    output: &Output,
    room: &str,
    wanted: Wanted<'_>,
) -> Result<(), Failure> {
    let room_id = find_room(client, room).await?;
    let bar = bar(output);
    let Wanted { event_id, to, .. } = wanted;
    let (wait, progress) = (Duration::from_secs(wanted.wait), progress(&bar));
    let saved = if wanted.thumbnail {
        client.save_thumbnail(&room_id, event_id, to, wait, &progress).await
    } else {
        client.save_file(&room_id, event_id, to, wait, &progress).await
    };
    bar.finish_and_clear();
    let saved = saved?;
    let text = format!("Saved {} ({} bytes).", saved.path.display(), saved.size);
    let value = json!({ "path": saved.path, "size": saved.size, "resumed_at": saved.resumed_at });
    output.result(&text, &value);
    Ok(())
}

/// A bar on standard error; a hidden one for scripts. It hides itself where standard error is no terminal.
fn bar(output: &Output) -> ProgressBar {
    if output.json {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

fn progress(bar: &ProgressBar) -> Progress {
    let bar = bar.clone();
    Arc::new(move |transfer: Transfer| {
        if let Some(total) = transfer.total {
            bar.set_length(total);
        }
        bar.set_position(transfer.done);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_of_the_bar_can_be_read() {
        ProgressStyle::with_template(STYLE).unwrap();
    }
}
