//! The suite of a room: going to a better one.

use serde_json::Value;

use keystead_keybox::suite::SUITES;

use super::{Client, ClientError};
use crate::engine::{EncryptError, KeyBoxAddress, Membership};

/// Why a room keeps its suite.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The room uses the best suite that this KeyBox speaks.
    #[error("the room uses {0} already; there is nothing better")]
    AlreadyBest(String),
    /// The KeyBox could not ask or tell the server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// KeyBoxes of members that could read nothing of what comes after.
    #[error("these KeyBoxes do not speak {suite} and would not read anything sent after the change: {}", list(.keyboxes))]
    LeavesBehind {
        /// Identifier of the new suite.
        suite: &'static str,
        /// The KeyBoxes.
        keyboxes: Vec<KeyBoxAddress>,
    },
}

fn list(keyboxes: &[KeyBoxAddress]) -> String {
    keyboxes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A room that has gone to another suite.
#[derive(Clone, Debug)]
pub struct Upgraded {
    /// Identifier of the suite that it had.
    pub from: String,
    /// Identifier of the suite that it has now.
    pub to: &'static str,
    /// KeyBoxes of members that read nothing of what comes from now on.
    pub left_behind: Vec<KeyBoxAddress>,
}

impl Client {
    /// Takes a room to the best suite of this KeyBox, for good: the server lets no room go back. What was sent before stays
    /// readable. Refuses where KeyBoxes of members do not speak that suite, unless `leave_behind`.
    pub async fn upgrade_suite(
        &mut self,
        room_id: &str,
        leave_behind: bool,
    ) -> Result<Upgraded, UpgradeError> {
        self.sync(std::time::Duration::ZERO).await?;
        let from = {
            let room = self.engine.rooms().get(room_id).filter(|room| room.membership == Membership::Join);
            let room = room.ok_or(ClientError::from(EncryptError::NotJoined))?;
            room.suite.clone().ok_or(ClientError::from(EncryptError::NotEncrypted))?
        };
        let best = SUITES.last().filter(|best| best.id != from);
        let best = best.ok_or_else(|| UpgradeError::AlreadyBest(from.clone()))?;
        let left_behind = self.left_behind(room_id, best.id).await?;
        if !left_behind.is_empty() && !leave_behind {
            return Err(UpgradeError::LeavesBehind { suite: best.id, keyboxes: left_behind });
        }
        // The rotation periods stay.
        let state = self.api.state(room_id, "m.room.encryption").await.map_err(ClientError::from)?;
        let mut content = state.as_object().cloned().unwrap_or_default();
        content.insert("algorithm".to_owned(), best.id.into());
        let set = self.api.set_state(room_id, "m.room.encryption", Value::Object(content)).await;
        set.map_err(ClientError::from)?;
        self.sync(std::time::Duration::ZERO).await?;
        Ok(Upgraded { from, to: best.id, left_behind })
    }

    /// The KeyBoxes of a room's members that do not speak a suite, as the server shows them now.
    async fn left_behind(&mut self, room_id: &str, suite: &str) -> Result<Vec<KeyBoxAddress>, ClientError> {
        let _lock = self.begin().await?;
        self.engine.follow_members(room_id);
        self.flush().await?;
        Ok(self.engine.not_speaking(room_id, suite))
    }
}
