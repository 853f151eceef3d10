//! A tenant: its apps, members and webhooks.

use askama::Template;
use axum::{
    Router,
    extract::{Path, Query as UrlQuery, State},
    routing::get,
};
use serde::Deserialize;

use super::{Failed, told};
use crate::console::{
    Console,
    client::Page,
    forms::Form,
    model::{AppRow, Member},
    session::Visitor,
    shell::{self, Query, Rendered, Shell, encode},
};
use crate::domain::Timestamp;

pub(super) fn routes() -> Router<Console> {
    Router::new().route("/tenants/{tenant}", get(tenant)).route("/tenants/{tenant}/webhooks/{id}", get(webhook))
}

#[derive(Debug, Deserialize)]
struct Webhook {
    id: String,
    url: String,
    types: Vec<String>,
    enabled: bool,
    disabled_reason: Option<String>,
    failing_since: Option<Timestamp>,
    missed: u64,
}

impl Webhook {
    /// What can be done with it.
    fn actions(&self) -> [&'static str; 3] {
        ["webhook-test", if self.enabled { "webhook-disable" } else { "webhook-enable" }, "webhook-remove"]
    }
}

#[derive(Debug, Deserialize)]
struct Delivery {
    r#type: String,
    attempt: u32,
    at: Timestamp,
    duration_ms: u64,
    status: Option<u16>,
    error: Option<String>,
}

#[derive(Template)]
#[template(path = "tenant.html", config = "src/console/askama.toml")]
struct TenantPage {
    shell: Shell,
    name: String,
    apps: Vec<AppRow>,
    make: Option<Form>,
    members: Vec<(Member, Option<Form>, Option<Form>)>,
    invite: Option<Form>,
    webhooks: Vec<(Webhook, Vec<Form>)>,
    add_webhook: Option<Form>,
    manifest: Option<Form>,
    require_manifest: bool,
}

async fn tenant(
    State(console): State<Console>,
    visitor: Visitor,
    Path(name): Path<String>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let base = format!("/v1/tenants/{}", encode(&name));
    let apps_path = format!("/v1/apps?limit=1000&tenant={}", encode(&name));
    #[derive(Deserialize)]
    struct About {
        require_manifest: bool,
    }
    let (members_path, webhooks_path) = (format!("{base}/members"), format!("{base}/webhooks?limit=1000"));
    let (about, apps, members, webhooks) = tokio::try_join!(
        console.client.get::<About>(&visitor.secret, &base),
        console.client.get::<Page<AppRow>>(&visitor.secret, &apps_path),
        console.client.get::<Vec<Member>>(&visitor.secret, &members_path),
        console.client.get::<Page<Webhook>>(&visitor.secret, &webhooks_path),
    )
    .map_err(told(&visitor))?;
    let shell = Shell::new(&visitor, &name).below(&[(format!("/tenants/{name}"), name.clone())]);
    let shell = shell.live(&format!("tenant={}", encode(&name))).done(&query);
    let own = [("tenant", name.as_str())];
    let with = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
        own.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let form = |action: &str, more: &[(&'static str, &str)]| {
        let values = with(more);
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shell.form(action, &values)
    };
    let button = |action: &str, more: &[(&'static str, &str)]| form(action, more).map(Form::button);
    let members = members
        .into_iter()
        .map(|member| {
            let set = form("member-set", &[("user", &member.user), ("role", &member.role)]).map(Form::linked);
            let way = if member.user == visitor.whoami.user { "leave" } else { "member-remove" };
            let remove = button(way, &[("user", &member.user)]);
            (member, set, remove)
        })
        .collect();
    let webhooks = webhooks
        .items
        .into_iter()
        .map(|webhook| {
            let forms =
                webhook.actions().into_iter().filter_map(|action| button(action, &[("id", &webhook.id)])).collect();
            (webhook, forms)
        })
        .collect();
    Ok(shell::page(&TenantPage {
        make: form("app-create", &[]),
        invite: form("invite", &[("role", "developer")]),
        add_webhook: form("webhook-add", &[]),
        manifest: form("manifest-require", if about.require_manifest { &[("require_manifest", "on")] } else { &[] }),
        require_manifest: about.require_manifest,
        apps: apps.items,
        members,
        webhooks,
        name,
        shell,
    }))
}

#[derive(Template)]
#[template(path = "webhook.html", config = "src/console/askama.toml")]
struct WebhookPage {
    shell: Shell,
    webhook: Webhook,
    forms: Vec<Form>,
    deliveries: Vec<Delivery>,
}

async fn webhook(
    State(console): State<Console>,
    visitor: Visitor,
    Path((name, id)): Path<(String, String)>,
    UrlQuery(query): UrlQuery<Query>,
) -> Result<Rendered, Failed> {
    let base = format!("/v1/tenants/{}/webhooks/{}", encode(&name), encode(&id));
    let path = format!("{base}/deliveries?limit=100");
    let (webhook, page) = tokio::try_join!(
        console.client.get::<Webhook>(&visitor.secret, &base),
        console.client.get::<Page<Delivery>>(&visitor.secret, &path),
    )
    .map_err(told(&visitor))?;
    let shell = Shell::new(&visitor, format!("Webhook {id}")).below(&[
        (format!("/tenants/{name}"), name.clone()),
        (format!("/tenants/{name}/webhooks/{id}"), format!("webhook {id}")),
    ]);
    let shell = shell.live(&format!("tenant={}&type=webhook.", encode(&name))).done(&query);
    let values = [("tenant", name.as_str()), ("id", id.as_str())];
    let forms = webhook.actions().into_iter().filter_map(|action| shell.form(action, &values)).map(Form::button);
    let forms = forms.collect();
    Ok(shell::page(&WebhookPage { webhook, forms, shell, deliveries: page.items }))
}
