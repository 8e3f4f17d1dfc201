//! Push rules: which events notify a user.
//!
//! Specification: <https://spec.matrix.org/v1.19/client-server-api/#push-rules-api>.

use keystead_core::push::{self, PushRuleRefusal};
use keystead_store::account_data;
use ruma::{
    UserId,
    api::{
        client::push::{
            delete_pushrule, get_pushrule, get_pushrule_actions, get_pushrule_enabled, get_pushrules_all,
            get_pushrules_global_scope, set_pushrule, set_pushrule_actions, set_pushrule_enabled,
        },
        error::ErrorCode,
    },
    push::{AnyPushRuleRef, RuleKind, Ruleset},
};

use crate::{
    app::App,
    context::{Ctx, Session},
    http::error::ApiError,
    push_rules::{account_data_of, load},
};

/// `GET /_matrix/client/v3/pushrules/`.
pub(super) async fn get_pushrules_all(
    ctx: Ctx<Session>,
    _request: get_pushrules_all::v3::Request,
) -> Result<get_pushrules_all::v3::Response, ApiError> {
    Ok(get_pushrules_all::v3::Response::new(read(&ctx.app, &ctx.requester.user_id).await?))
}

/// `GET /_matrix/client/v3/pushrules/global/`.
pub(super) async fn get_pushrules_global_scope(
    ctx: Ctx<Session>,
    _request: get_pushrules_global_scope::v3::Request,
) -> Result<get_pushrules_global_scope::v3::Response, ApiError> {
    Ok(get_pushrules_global_scope::v3::Response::new(read(&ctx.app, &ctx.requester.user_id).await?))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub(super) async fn get_pushrule(
    ctx: Ctx<Session>,
    request: get_pushrule::v3::Request,
) -> Result<get_pushrule::v3::Response, ApiError> {
    let rules = read(&ctx.app, &ctx.requester.user_id).await?;
    let rule = rule(&rules, request.kind, &request.rule_id)?;
    Ok(get_pushrule::v3::Response::new(rule.to_owned().into()))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub(super) async fn set_pushrule(
    ctx: Ctx<Session>,
    request: set_pushrule::v3::Request,
) -> Result<set_pushrule::v3::Response, ApiError> {
    let set_pushrule::v3::Request { rule, before, after, .. } = &request;
    change(&ctx, &|rules| push::put_rule(rules, rule.clone(), after.as_deref(), before.as_deref())).await?;
    Ok(set_pushrule::v3::Response::new())
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub(super) async fn delete_pushrule(
    ctx: Ctx<Session>,
    request: delete_pushrule::v3::Request,
) -> Result<delete_pushrule::v3::Response, ApiError> {
    change(&ctx, &|rules| push::delete_rule(rules, request.kind.clone(), &request.rule_id)).await?;
    Ok(delete_pushrule::v3::Response::new())
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`.
pub(super) async fn get_pushrule_enabled(
    ctx: Ctx<Session>,
    request: get_pushrule_enabled::v3::Request,
) -> Result<get_pushrule_enabled::v3::Response, ApiError> {
    let rules = read(&ctx.app, &ctx.requester.user_id).await?;
    let enabled = rule(&rules, request.kind, &request.rule_id)?.enabled();
    Ok(get_pushrule_enabled::v3::Response::new(enabled))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`.
pub(super) async fn set_pushrule_enabled(
    ctx: Ctx<Session>,
    request: set_pushrule_enabled::v3::Request,
) -> Result<set_pushrule_enabled::v3::Response, ApiError> {
    let set_pushrule_enabled::v3::Request { kind, rule_id, enabled, .. } = &request;
    change(&ctx, &|rules| push::set_enabled(rules, kind.clone(), rule_id, *enabled)).await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`.
pub(super) async fn get_pushrule_actions(
    ctx: Ctx<Session>,
    request: get_pushrule_actions::v3::Request,
) -> Result<get_pushrule_actions::v3::Response, ApiError> {
    let rules = read(&ctx.app, &ctx.requester.user_id).await?;
    let actions = rule(&rules, request.kind, &request.rule_id)?.actions().to_vec();
    Ok(get_pushrule_actions::v3::Response::new(actions))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`.
pub(super) async fn set_pushrule_actions(
    ctx: Ctx<Session>,
    request: set_pushrule_actions::v3::Request,
) -> Result<set_pushrule_actions::v3::Response, ApiError> {
    let set_pushrule_actions::v3::Request { kind, rule_id, actions, .. } = &request;
    change(&ctx, &|rules| push::set_actions(rules, kind.clone(), rule_id, actions.clone())).await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

async fn read(app: &App, user_id: &UserId) -> Result<Ruleset, ApiError> {
    Ok(app.store.read("get_push_rules", |tx| async move { load(&tx, user_id).await }).await?)
}

async fn change(
    ctx: &Ctx<Session>,
    change: &(dyn Fn(&mut Ruleset) -> Result<(), PushRuleRefusal> + Send + Sync),
) -> Result<(), ApiError> {
    let user_id = &*ctx.requester.user_id;
    ctx.app
        .store
        .write("change_push_rules", |tx| async move {
            // The lock also keeps two changes of the same rules apart.
            tx.lock_shards(&[tx.shards().of_user(user_id)]).await?;
            let mut global = load(&tx, user_id).await?;
            change(&mut global).map_err(refuse)?;
            let data = account_data_of(user_id, global)?;
            account_data::put(&tx, &data).await?;
            Ok::<_, ApiError>(())
        })
        .await
}

fn rule<'a>(rules: &'a Ruleset, kind: RuleKind, rule_id: &str) -> Result<AnyPushRuleRef<'a>, ApiError> {
    rules.get(kind, rule_id).ok_or_else(|| refuse(PushRuleRefusal::NotFound))
}

fn refuse(refusal: PushRuleRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        PushRuleRefusal::NotFound => ApiError::not_found(text),
        PushRuleRefusal::InvalidRuleId | PushRuleRefusal::ServerDefault => ApiError::invalid_param(text),
        PushRuleRefusal::BeforeHigherThanAfter
        | PushRuleRefusal::RelativeToDefaultRule
        | PushRuleRefusal::TooMany
        | PushRuleRefusal::UnknownNeighbour => {
            ApiError::new(http::StatusCode::BAD_REQUEST, ErrorCode::Unknown, text)
        }
    }
}
