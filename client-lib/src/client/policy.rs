//! To whom this KeyBox gives resource keys.

use std::collections::BTreeMap;

use keystead_keybox::OpensslEntropy;

use super::{Client, ClientError};
use crate::clock::now_ms;
use crate::engine::{Approval, Policy};

impl Client {
    /// The policy that holds for a room, or for the account.
    pub fn policy(&self, room_id: Option<&str>) -> Policy {
        self.engine.policy(room_id)
    }

    /// The rooms that have a policy of their own.
    pub fn room_policies(&self) -> &BTreeMap<String, Policy> {
        self.engine.room_policies()
    }

    /// Sets the policy of the account. It holds for what is asked and sent from now on.
    pub async fn set_policy(&mut self, policy: Policy) -> Result<(), ClientError> {
        let _lock = self.begin().await?;
        self.engine.set_policy(policy);
        self.commit()
    }

    /// Sets the policy of one room; `None` lets the account's hold again.
    pub async fn set_room_policy(
        &mut self,
        room_id: &str,
        policy: Option<Policy>,
    ) -> Result<(), ClientError> {
        let _lock = self.begin().await?;
        self.engine.set_room_policy(room_id, policy);
        self.commit()
    }

    /// What waits for a person's decision, and what was decided, oldest first.
    pub async fn approvals(&mut self) -> Result<Vec<Approval>, ClientError> {
        let _lock = self.begin().await?;
        Ok(self.engine.approvals().to_vec())
    }

    /// Agrees that a KeyBox gets the keys that it waits for, and with `always` those of the room to come; sends them. `false` if
    /// there is no such approval.
    pub async fn approve(&mut self, id: u64, always: bool) -> Result<bool, ClientError> {
        let _lock = self.begin().await?;
        let known = self.engine.approve(id, always, now_ms(), &mut OpensslEntropy, &mut self.notices)?;
        self.flush().await?;
        Ok(known)
    }

    /// Decides that a KeyBox gets no keys of the room, and tells it so. `false` if there is no such approval.
    pub async fn refuse(&mut self, id: u64) -> Result<bool, ClientError> {
        let _lock = self.begin().await?;
        let known = self.engine.refuse(id, &mut OpensslEntropy, &mut self.notices)?;
        self.flush().await?;
        Ok(known)
    }
}
