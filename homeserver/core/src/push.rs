//! Push rules: whether an event notifies a member, and how a user changes the rules ([spec]).
//!
//! [spec]: https://spec.matrix.org/v1.19/client-server-api/#push-rules

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use ruma::{
    RoomId, UserId,
    events::AnySyncTimelineEvent,
    push::{
        Action, AnyPushRuleRef, ConditionalPushRule, FlattenedJson, InsertPushRuleError,
        NewConditionalPushRule, NewPushRule, NewSimplePushRule, PushCondition, PushConditionRoomCtx,
        RemovePushRuleError, RuleKind, Ruleset,
    },
    serde::Raw,
};
use serde_json::value::RawValue;

use crate::json;

/// What an event means for one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the event notifies the user, and counts as unread.
    pub notify: bool,
    /// Whether the event is highlighted, and counts as a highlight.
    pub highlight: bool,
}

/// Why a change of push rules is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushRuleRefusal {
    /// `before` and `after` ask for a place that does not exist.
    #[error("the rule named by before has a higher priority than the one named by after")]
    BeforeHigherThanAfter,
    /// The rule id is empty or has a character that rule ids cannot have.
    #[error("a rule id is not empty and has neither / nor \\ in it")]
    InvalidRuleId,
    /// There is no such rule.
    #[error("there is no push rule of that kind and id")]
    NotFound,
    /// The other rule is one of the server's, whose place is fixed.
    #[error("a rule cannot be placed relative to one of the server's default rules")]
    RelativeToDefaultRule,
    /// The rule is one of the server's, which can be disabled but not replaced or removed.
    #[error("the server's default rules can neither be added nor removed")]
    ServerDefault,
    /// The user has as many rules as one may have.
    #[error("there are too many push rules")]
    TooMany,
    /// The rule named by `before` or `after` does not exist.
    #[error("the rule named by before or after does not exist")]
    UnknownNeighbour,
}

/// The rules of one user may not be more than this: each is tried on each event of each of the user's rooms.
pub const MAX_RULES: usize = 1000;

/// The rules that a user has before changing any.
pub fn default_rules(user_id: &UserId) -> Ruleset {
    Ruleset::server_default(user_id)
}

/// An event in the form that push rules look at; made once for all members.
///
/// `event` is in the client format with its `room_id`. `None` if it is no event, or nested so deep that no
/// server would have taken it; such an event notifies nobody.
pub fn flatten(event: &RawValue) -> Option<FlattenedJson> {
    if !event.get().starts_with('{') || json::is_too_deep(event.get()) {
        return None;
    }
    Some(FlattenedJson::from_raw(&Raw::<AnySyncTimelineEvent>::from_json(event.to_owned())))
}

/// What the event means for the member whom `context` describes, under the member's rules.
pub fn evaluate(rules: &Ruleset, event: &FlattenedJson, context: &PushConditionRoomCtx) -> Outcome {
    match matching_rule(rules, event, context) {
        Some(rule) => Outcome { notify: rule.triggers_notification(), highlight: rule.triggers_highlight() },
        None => Outcome::default(),
    }
}

/// What the event does for the member whom `context` describes, if it notifies them: the actions of the rule that says so.
pub fn notifying_actions(
    rules: &Ruleset,
    event: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> Option<Vec<Action>> {
    let rule = matching_rule(rules, event, context)?;
    rule.triggers_notification().then(|| rule.actions().to_vec())
}

/// The first rule, by priority, that applies to the event. A user's own events match no rule.
fn matching_rule<'a>(
    rules: &'a Ruleset,
    event: &FlattenedJson,
    context: &PushConditionRoomCtx,
) -> Option<AnyPushRuleRef<'a>> {
    if event.get_str("sender") == Some(context.user_id.as_str()) {
        return None;
    }
    rules.iter().find(|rule| ready(rule.applies(event, context)).unwrap_or(false))
}

/// Adds a rule, or replaces the user's rule of that kind and id, which keeps its place unless a new one is named.
///
/// `after` and `before` name rules of the same kind: the next more and the next less important one.
///
/// # Errors
///
/// [`PushRuleRefusal`]; the rules are then unchanged.
pub fn put_rule(
    rules: &mut Ruleset,
    rule: NewPushRule,
    after: Option<&str>,
    before: Option<&str>,
) -> Result<(), PushRuleRefusal> {
    let (kind, rule_id) = (rule.kind(), rule.rule_id().to_owned());
    let existing = rules.get(kind.clone(), &rule_id).map(AnyPushRuleRef::enabled);
    if rule_id.is_empty() {
        return Err(PushRuleRefusal::InvalidRuleId);
    }
    if [after, before].contains(&Some(rule_id.as_str())) {
        return Err(PushRuleRefusal::UnknownNeighbour);
    }
    if existing.is_none() && rules.iter().count() >= MAX_RULES {
        return Err(PushRuleRefusal::TooMany);
    }
    // A refused insertion leaves the rule behind, and one that moves a rule counts that rule among its own
    // neighbours: so it is done on a copy from which a rule that moves has been taken out.
    let mut changed = rules.clone();
    let moves = after.is_some() || before.is_some();
    if moves && existing.is_some() {
        changed.remove(kind.clone(), &rule_id).map_err(refuse_removal)?;
    }
    changed.insert(rule, after, before).map_err(refuse_insertion)?;
    if let Some(enabled) = existing {
        changed.set_enabled(kind, &rule_id, enabled).map_err(|_| PushRuleRefusal::NotFound)?;
    }
    *rules = changed;
    Ok(())
}

/// Makes the user's rules for one room anew for the room that replaces it: those that are named after it, with the conditions that
/// name it. Rules that there are for the new room stay, and beyond the greatest number of rules none is made. Returns whether there is
/// a new one.
pub fn carry_over(rules: &mut Ruleset, from: &RoomId, to: &RoomId) -> bool {
    let conditional = |rule: &ConditionalPushRule| {
        let conditions = rule.conditions.iter().cloned().map(|mut condition| {
            if let PushCondition::EventMatch(data) = &mut condition
                && data.key == "room_id"
                && data.pattern == from.as_str()
            {
                data.pattern = to.to_string();
            }
            condition
        });
        NewConditionalPushRule::new(to.to_string(), conditions.collect(), rule.actions.clone())
    };
    let of_room: Vec<_> = rules
        .iter()
        .filter(|rule| rule.rule_id() == from.as_str())
        .filter_map(|rule| {
            let new = match rule {
                AnyPushRuleRef::Override(rule) => NewPushRule::Override(conditional(rule)),
                AnyPushRuleRef::Underride(rule) => NewPushRule::Underride(conditional(rule)),
                AnyPushRuleRef::Room(rule) => {
                    NewPushRule::Room(NewSimplePushRule::new(to.to_owned(), rule.actions.clone()))
                }
                _ => return None,
            };
            Some((new, rule.enabled()))
        })
        .collect();
    let mut has_new = false;
    for (new, enabled) in of_room {
        let kind = new.kind();
        if rules.get(kind.clone(), to.as_str()).is_none() && put_rule(rules, new, None, None).is_ok() {
            has_new = true;
            // It was made a moment ago.
            let _ = rules.set_enabled(kind, to.as_str(), enabled);
        }
    }
    has_new
}

/// Removes one of the user's own rules.
///
/// # Errors
///
/// [`PushRuleRefusal::ServerDefault`] or [`PushRuleRefusal::NotFound`].
pub fn delete_rule(rules: &mut Ruleset, kind: RuleKind, rule_id: &str) -> Result<(), PushRuleRefusal> {
    rules.remove(kind, rule_id).map_err(refuse_removal)
}

/// Switches a rule, also one of the server's, on or off.
///
/// # Errors
///
/// [`PushRuleRefusal::NotFound`] if there is no such rule.
pub fn set_enabled(
    rules: &mut Ruleset,
    kind: RuleKind,
    rule_id: &str,
    enabled: bool,
) -> Result<(), PushRuleRefusal> {
    rules.set_enabled(kind, rule_id, enabled).map_err(|_| PushRuleRefusal::NotFound)
}

/// Changes what a rule, also one of the server's, does.
///
/// # Errors
///
/// [`PushRuleRefusal::NotFound`] if there is no such rule.
pub fn set_actions(
    rules: &mut Ruleset,
    kind: RuleKind,
    rule_id: &str,
    actions: Vec<Action>,
) -> Result<(), PushRuleRefusal> {
    rules.set_actions(kind, rule_id, actions).map_err(|_| PushRuleRefusal::NotFound)
}

fn refuse_removal(error: RemovePushRuleError) -> PushRuleRefusal {
    match error {
        RemovePushRuleError::ServerDefault => PushRuleRefusal::ServerDefault,
        _ => PushRuleRefusal::NotFound,
    }
}

fn refuse_insertion(error: InsertPushRuleError) -> PushRuleRefusal {
    match error {
        InsertPushRuleError::ServerDefaultRuleId => PushRuleRefusal::ServerDefault,
        InsertPushRuleError::RelativeToServerDefaultRule => PushRuleRefusal::RelativeToDefaultRule,
        InsertPushRuleError::UnknownRuleId => PushRuleRefusal::UnknownNeighbour,
        InsertPushRuleError::BeforeHigherThanAfter => PushRuleRefusal::BeforeHigherThanAfter,
        _ => PushRuleRefusal::InvalidRuleId,
    }
}

/// The value of a future that never waits: ruma's rules are async only for conditions that this build leaves out.
fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruma::{
        events::room::power_levels::RoomPowerLevelsEventContent,
        push::{NewPatternedPushRule, PushConditionPowerLevelsCtx},
        room_id,
        room_version_rules::{AuthorizationRules, RoomPowerLevelsRules},
        uint, user_id,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::json::raw;

    fn context(members: u32, sender_level: i32) -> PushConditionRoomCtx {
        let levels = RoomPowerLevelsEventContent::new(&AuthorizationRules::V12);
        let power = PushConditionPowerLevelsCtx::new(
            [(user_id!("@b:b.c").to_owned(), sender_level.into())].into(),
            levels.users_default,
            levels.notifications,
            RoomPowerLevelsRules::new(&AuthorizationRules::V12, None),
        );
        PushConditionRoomCtx::new(
            room_id!("!r:b.c").to_owned(),
            members.into(),
            user_id!("@a:b.c").to_owned(),
            "Anna".to_owned(),
        )
        .with_power_levels(power)
    }

    fn message(sender: &str, content: Value) -> FlattenedJson {
        let event =
            json!({ "type": "m.room.message", "sender": sender, "room_id": "!r:b.c", "content": content });
        flatten(&raw(&event)).unwrap()
    }

    #[test]
    fn rules_for_a_room_are_carried_over_to_the_one_that_replaces_it() {
        let (old, new) = (room_id!("!old:x"), room_id!("!new:x"));
        let mut rules = default_rules(user_id!("@a:b.c"));
        let room = NewPushRule::Room(NewSimplePushRule::new(old.to_owned(), vec![Action::Notify]));
        put_rule(&mut rules, room, None, None).unwrap();
        set_enabled(&mut rules, RuleKind::Room, old.as_str(), false).unwrap();
        let mute: NewConditionalPushRule = serde_json::from_value(json!({
            "rule_id": old, "actions": [],
            "conditions": [{ "kind": "event_match", "key": "room_id", "pattern": old }, { "kind": "event_match", "key": "type", "pattern": "m.*" }],
        }))
        .unwrap();
        put_rule(&mut rules, NewPushRule::Override(mute), None, None).unwrap();

        assert!(carry_over(&mut rules, old, new));
        let json = serde_json::to_value(&rules).unwrap();
        let of_kind = |kind: &str| {
            json[kind]
                .as_array()
                .unwrap()
                .iter()
                .find(|rule| rule["rule_id"] == new.as_str())
                .cloned()
                .unwrap()
        };
        let expected = json!({ "rule_id": new, "actions": ["notify"], "enabled": false, "default": false });
        assert_eq!(of_kind("room"), expected);
        let mute = of_kind("override");
        assert_eq!((&mute["actions"], &mute["enabled"]), (&json!([]), &json!(true)));
        assert_eq!(mute["conditions"][0]["pattern"], new.as_str());
        assert_eq!(mute["conditions"][1]["pattern"], "m.*");
        assert!(rules.get(RuleKind::Room, old).is_some(), "what there was stays");

        set_enabled(&mut rules, RuleKind::Room, new.as_str(), true).unwrap();
        assert!(!carry_over(&mut rules, old, new), "nothing is there to be made");
        assert!(rules.get(RuleKind::Room, new).unwrap().enabled());
    }

    #[test]
    fn the_default_rules_notify_and_highlight_as_specified() {
        let rules = default_rules(user_id!("@a:b.c"));
        let plain = json!({ "msgtype": "m.text", "body": "hello" });
        let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": ["@a:b.c"] } });
        let room = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "room": true } });
        let notice = json!({ "msgtype": "m.notice", "body": "x" });
        let table = [
            ("@b:b.c", &plain, 0, (true, false)),
            ("@a:b.c", &plain, 0, (false, false)),
            ("@b:b.c", &mention, 0, (true, true)),
            ("@b:b.c", &room, 50, (true, true)),
            ("@b:b.c", &room, 49, (true, false)),
            ("@b:b.c", &notice, 0, (false, false)),
        ];
        for (sender, content, level, (notify, highlight)) in table {
            let outcome = evaluate(&rules, &message(sender, content.clone()), &context(3, level));
            assert_eq!(outcome, Outcome { notify, highlight }, "{sender} {content} {level}");
        }
    }

    #[test]
    fn an_invitation_notifies_the_invited_user_alone() {
        let rules = default_rules(user_id!("@a:b.c"));
        for (target, notify) in [("@a:b.c", true), ("@c:b.c", false)] {
            let event = json!({
                "type": "m.room.member", "sender": "@b:b.c", "room_id": "!r:b.c", "state_key": target,
                "content": { "membership": "invite" },
            });
            let outcome = evaluate(&rules, &flatten(&raw(&event)).unwrap(), &context(2, 0));
            assert_eq!(outcome.notify, notify, "{target}");
        }
    }

    #[test]
    fn the_master_rule_silences_everything() {
        let mut rules = default_rules(user_id!("@a:b.c"));
        set_enabled(&mut rules, RuleKind::Override, ".m.rule.master", true).unwrap();
        let event = message("@b:b.c", json!({ "msgtype": "m.text", "body": "x" }));
        assert_eq!(evaluate(&rules, &event, &context(2, 100)), Outcome::default());
    }

    #[test]
    fn hostile_nesting_notifies_nobody() {
        let text = format!("{{\"content\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(flatten(&RawValue::from_string(text).unwrap()).is_none());
        assert!(flatten(&raw(&json!([]))).is_none());
    }

    fn word(id: &str) -> NewPushRule {
        NewPushRule::Content(NewPatternedPushRule::new(id.to_owned(), id.to_owned(), vec![Action::Notify]))
    }

    fn words(rules: &Ruleset) -> Vec<&str> {
        rules.content.iter().map(|rule| rule.rule_id.as_str()).collect()
    }

    #[test]
    fn rules_are_placed_before_and_after_others() {
        let mut rules = default_rules(user_id!("@a:b.c"));
        for id in ["c", "b", "a"] {
            put_rule(&mut rules, word(id), None, None).unwrap();
        }
        assert_eq!(words(&rules), ["a", "b", "c"]);
        put_rule(&mut rules, word("a"), Some("c"), None).unwrap();
        assert_eq!(words(&rules), ["b", "c", "a"]);
        put_rule(&mut rules, word("a"), Some("b"), None).unwrap();
        assert_eq!(words(&rules), ["b", "a", "c"]);
        put_rule(&mut rules, word("c"), None, Some("b")).unwrap();
        assert_eq!(words(&rules), ["c", "b", "a"]);
        put_rule(&mut rules, word("b"), None, None).unwrap();
        assert_eq!(words(&rules), ["c", "b", "a"]);
    }

    #[test]
    fn a_replaced_rule_stays_disabled() {
        let mut rules = default_rules(user_id!("@a:b.c"));
        put_rule(&mut rules, word("a"), None, None).unwrap();
        put_rule(&mut rules, word("b"), None, None).unwrap();
        set_enabled(&mut rules, RuleKind::Content, "a", false).unwrap();
        for (after, before) in [(None, None), (Some("b"), None)] {
            put_rule(&mut rules, word("a"), after, before).unwrap();
            assert!(!rules.content.get("a").unwrap().enabled);
        }
    }

    #[test]
    fn refusals_change_nothing() {
        let mut rules = default_rules(user_id!("@a:b.c"));
        for id in ["b", "a"] {
            put_rule(&mut rules, word(id), None, None).unwrap();
        }
        let before = serde_json::to_value(&rules).unwrap();
        let table = [
            (word(".m.rule.x"), None, None, PushRuleRefusal::ServerDefault),
            (word("x/y"), None, None, PushRuleRefusal::InvalidRuleId),
            (word(""), None, None, PushRuleRefusal::InvalidRuleId),
            (word("x"), Some("nobody"), None, PushRuleRefusal::UnknownNeighbour),
            (word("x"), None, Some("nobody"), PushRuleRefusal::UnknownNeighbour),
            (word("a"), Some("a"), None, PushRuleRefusal::UnknownNeighbour),
            (word("x"), Some(".m.rule.contains_user_name"), None, PushRuleRefusal::RelativeToDefaultRule),
            (word("x"), Some("b"), Some("a"), PushRuleRefusal::BeforeHigherThanAfter),
        ];
        for (rule, after, neighbour, expected) in table {
            assert_eq!(put_rule(&mut rules, rule, after, neighbour), Err(expected));
        }
        let master = ".m.rule.master";
        assert_eq!(delete_rule(&mut rules, RuleKind::Override, master), Err(PushRuleRefusal::ServerDefault));
        assert_eq!(delete_rule(&mut rules, RuleKind::Room, "!x:b.c"), Err(PushRuleRefusal::NotFound));
        assert_eq!(delete_rule(&mut rules, "odd".into(), "x"), Err(PushRuleRefusal::NotFound));
        assert_eq!(
            set_actions(&mut rules, RuleKind::Sender, "@x:b.c", vec![]),
            Err(PushRuleRefusal::NotFound)
        );
        assert_eq!(serde_json::to_value(&rules).unwrap(), before);
    }

    #[test]
    fn a_room_rule_mutes_its_room() {
        let mut rules = default_rules(user_id!("@a:b.c"));
        let mute = NewSimplePushRule::new(room_id!("!r:b.c").to_owned(), vec![]);
        put_rule(&mut rules, NewPushRule::Room(mute), None, None).unwrap();
        let event = message("@b:b.c", json!({ "msgtype": "m.text", "body": "x" }));
        assert!(!evaluate(&rules, &event, &context(3, 0)).notify);
        delete_rule(&mut rules, RuleKind::Room, "!r:b.c").unwrap();
        assert!(evaluate(&rules, &event, &context(3, 0)).notify);
        assert_eq!(context(3, 0).member_count, uint!(3));
    }

    proptest! {
        /// Whatever is asked for, the ids stay unique, the master rule stays first and nothing panics.
        #[test]
        fn any_sequence_of_moves_keeps_the_rules_sound(
            moves in prop::collection::vec(("[a-d]", prop::option::of("[a-e]"), prop::option::of("[a-e]")), 0..30),
        ) {
            let mut rules = default_rules(user_id!("@a:b.c"));
            for (id, after, before) in moves {
                let known = rules.content.len();
                let outcome = put_rule(&mut rules, word(&id), after.as_deref(), before.as_deref());
                let ids = words(&rules);
                let place = |id: &str| ids.iter().position(|other| *other == id);
                if outcome.is_ok() {
                    prop_assert!(after.is_none_or(|after| place(&after) < place(&id)));
                    prop_assert!(before.is_none_or(|before| place(&id) < place(&before)));
                } else {
                    prop_assert_eq!(ids.len(), known);
                }
            }
            prop_assert_eq!(rules.override_.first().map(|rule| rule.rule_id.as_str()), Some(".m.rule.master"));
        }
    }
}
