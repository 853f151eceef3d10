//! What is told to the outside: webhooks of a tenant's events, drains of an environment's log.

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    api::{
        Api,
        entity::{Entity, only_if, view},
        extract::{Asked, Body, Names},
        idempotency::Answers,
        names::{EnvPath, PartPath, TenantPath, parse},
        page::{Page, PageQuery},
        problem::{Problem, Refusals},
        views::{Delivery, Drain, DrainChanged, Webhook, WebhookRemoved},
    },
    commands::{
        Ask, Caller, Command, etag,
        nouns::{Drains, Webhooks},
        webhook_settings,
    },
    domain::{TenantName, WebhookId},
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_webhooks, create_webhook))
        .routes(routes!(show_webhook, change_webhook, remove_webhook))
        .routes(routes!(list_deliveries))
        .routes(routes!(test_webhook))
        .routes(routes!(list_drains, create_drain))
        .routes(routes!(remove_drain))
}

/// A webhook to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewWebhook {
    /// Where events are sent to
    url: String,
    /// Only events whose type begins so, as in `build.`
    #[serde(default)]
    types: Vec<String>,
}

/// What can be changed of a webhook.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WebhookChange {
    /// Whether events are sent; from now on, when they were not
    enabled: bool,
}

/// The path of a webhook.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct WebhookPath {
    /// As in `acme`
    #[param(value_type = String)]
    tenant: TenantName,
    /// As in `1a2b3c4d`
    id: String,
}

impl WebhookPath {
    fn parts(self) -> Result<(TenantName, WebhookId), Problem> {
        Ok((self.tenant, parse(&self.id)?))
    }
}

/// A log drain to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDrain {
    /// `https://HOST/PATH` (NDJSON), `syslog+tls://HOST:PORT` or `syslog://HOST:PORT` (RFC 5424)
    url: String,
}

/// Webhooks of a tenant, and how they are
#[utoipa::path(get, path = "/tenants/{tenant}/webhooks", tag = "webhooks", params(TenantPath, PageQuery), responses((status = 200, body = Page<Webhook>), Refusals))]
async fn list_webhooks(
    State(api): State<Api>,
    caller: Caller,
    Names(TenantPath { tenant }): Names<TenantPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Webhook>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Webhooks(Webhooks::List { tenant }))).await?;
    Ok(Json(page.page(list, &["id"])?))
}

/// Have events sent to a URL (owners); the secret that they are signed with is shown this once
#[utoipa::path(post, path = "/tenants/{tenant}/webhooks", tag = "webhooks", params(TenantPath, ("Idempotency-Key" = Option<String>, Header)),
    request_body = NewWebhook, responses((status = 201, body = Webhook), Refusals))]
async fn create_webhook(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(TenantPath { tenant }): Names<TenantPath>,
    Body(new): Body<NewWebhook>,
) -> Result<Response, Problem> {
    let path = format!("/tenants/{tenant}/webhooks");
    let command = Webhooks::Add { tenant, url: new.url.clone(), kinds: new.types.clone() };
    super::create::<Webhook>(
        &api,
        caller,
        &headers,
        (&path, &new),
        Answers::Secret,
        Ask::new(Command::Webhooks(command)),
    )
    .await
}

/// A webhook, and how it is. Its tag is of what was set and whether it is enabled: how deliveries go, in `retry`, `failing_since` and `missed`,
/// does not change it
#[utoipa::path(get, path = "/tenants/{tenant}/webhooks/{id}", tag = "webhooks", params(WebhookPath),
    responses((status = 200, body = Webhook, headers(("ETag"))), (status = 304, description = "As you have it, but for how deliveries go"), Refusals))]
async fn show_webhook(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<WebhookPath>,
) -> Result<Entity<Webhook>, Problem> {
    let (tenant, id) = path.parts()?;
    let value = api.ask(caller, Ask::new(Command::Webhooks(Webhooks::Info { tenant, id }))).await?;
    Entity::tagged(etag(&webhook_settings(&value)), value, &headers)
}

/// Send events again, or none (owners)
#[utoipa::path(patch, path = "/tenants/{tenant}/webhooks/{id}", tag = "webhooks", params(WebhookPath, ("If-Match" = Option<String>, Header)), request_body = WebhookChange,
    responses((status = 200, body = Webhook), Refusals))]
async fn change_webhook(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<WebhookPath>,
    Body(change): Body<WebhookChange>,
) -> Result<Json<Webhook>, Problem> {
    let (tenant, id) = path.parts()?;
    let command = match change.enabled {
        true => Webhooks::Enable { tenant, id },
        false => Webhooks::Disable { tenant, id },
    };
    let ask = Ask::new(Command::Webhooks(command)).only_if(only_if(&headers)?);
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// Remove a webhook and its delivery log (owners)
#[utoipa::path(delete, path = "/tenants/{tenant}/webhooks/{id}", tag = "webhooks", params(WebhookPath, ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = WebhookRemoved), Refusals))]
async fn remove_webhook(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<WebhookPath>,
) -> Result<Json<WebhookRemoved>, Problem> {
    let (tenant, id) = path.parts()?;
    let ask = Ask::new(Command::Webhooks(Webhooks::Remove { tenant, id })).only_if(only_if(&headers)?);
    Ok(Json(view(api.ask(caller, ask).await?)?))
}

/// What was sent last and how that went, the newest first
#[utoipa::path(get, path = "/tenants/{tenant}/webhooks/{id}/deliveries", tag = "webhooks", params(WebhookPath, PageQuery),
    responses((status = 200, body = Page<Delivery>), Refusals))]
async fn list_deliveries(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<WebhookPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Delivery>>, Problem> {
    let (tenant, id) = path.parts()?;
    let list = api.ask(caller, Ask::new(Command::Webhooks(Webhooks::Deliveries { tenant, id }))).await?;
    Ok(Json(page.page(list, &["number"])?))
}

/// Send a `webhook.ping` now (owners)
#[utoipa::path(post, path = "/tenants/{tenant}/webhooks/{id}/test", tag = "webhooks", params(WebhookPath), responses((status = 200, body = Delivery), Refusals))]
async fn test_webhook(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<WebhookPath>,
) -> Result<Json<Delivery>, Problem> {
    let (tenant, id) = path.parts()?;
    Ok(Json(view(api.ask(caller, Ask::new(Command::Webhooks(Webhooks::Test { tenant, id }))).await?)?))
}

/// Log drains of an environment: how they are, how many lines each has sent and dropped
#[utoipa::path(get, path = "/envs/{tenant}/{app}/{env}/drains", tag = "logs", params(EnvPath, PageQuery), responses((status = 200, body = Page<Drain>), Refusals))]
async fn list_drains(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<EnvPath>,
    Asked(page): Asked<PageQuery>,
) -> Result<Json<Page<Drain>>, Problem> {
    let list = api.ask(caller, Ask::new(Command::Drains(Drains::List { env: path.env() }))).await?;
    Ok(Json(page.page(list, &["id"])?))
}

/// Send the environment's log on from now
#[utoipa::path(post, path = "/envs/{tenant}/{app}/{env}/drains", tag = "logs", params(EnvPath, ("Idempotency-Key" = Option<String>, Header)),
    request_body = NewDrain, responses((status = 201, body = DrainChanged), Refusals))]
async fn create_drain(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Names(path): Names<EnvPath>,
    Body(new): Body<NewDrain>,
) -> Result<Response, Problem> {
    let env = path.env();
    let path = format!("/envs/{env}/drains");
    let ask = Ask::new(Command::Drains(Drains::Add { env, url: new.url.clone() }));
    super::create::<DrainChanged>(&api, caller, &headers, (&path, &new), Answers::Kept, ask).await
}

/// Stop sending
#[utoipa::path(delete, path = "/envs/{tenant}/{app}/{env}/drains/{id}", tag = "logs", params(PartPath), responses((status = 200, body = DrainChanged), Refusals))]
async fn remove_drain(
    State(api): State<Api>,
    caller: Caller,
    Names(path): Names<PartPath>,
) -> Result<Json<DrainChanged>, Problem> {
    let (env, id) = path.parts();
    Ok(Json(view(api.ask(caller, Ask::new(Command::Drains(Drains::Remove { env, id: parse(&id)? }))).await?)?))
}
